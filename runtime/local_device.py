"""This machine, through its own shell: what a board or phone is compared with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ammd.fetch import user_cache

from .device import Ran

NAME = "local"


class LocalConnection:
    """Runs scripts here. Implements `Connection`."""

    name = NAME

    @property
    def folder_script(self) -> str:
        """Print a folder in the user's cache."""
        folder = shlex.quote(str(user_cache() / "device"))
        return f"mkdir -p {folder} && printf %s {folder}"

    def command(self, script: str) -> Sequence[str]:
        """Return the command that runs `script`."""
        return ["sh", "-c", script]

    def settle(self, ran: Ran) -> Ran:
        """Return it as it is: there is nothing between here and here."""
        return ran

    def close(self) -> None:
        """Do nothing."""
