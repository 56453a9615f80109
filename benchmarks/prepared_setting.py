"""The two settings that methods are compared in, each prepared on the first call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import character_level
import instructions
from character_level import CharacterLevel
from instructions import Instructions

from ammd.machine import available_cores

SETTINGS = ("small", "instructions")
Prepared = CharacterLevel | Instructions


def prepared_setting(
    name: str, work: Path, *, data: Path | None, overrides: Sequence[str], jobs: int
) -> Prepared:
    """Return the setting in `work`, after preparing it where its data are given.

    Args:
        name: Of `SETTINGS`.
        work: Folder that is prepared, or is to be.
        data: Holds `text-books/` or the `instruct-*/` folders; None where `work` is prepared.
        overrides: KEY=VALUE of the recipe that the real setting is prepared from.
        jobs: Workers that share the cores.
    """
    if name == "small":
        if data:
            character_level.prepare(work, data / "text-books" / "pride-and-prejudice.jsonl")
        return CharacterLevel(work=work)
    if data:
        instructions.prepare(work, data, overrides=overrides)
    return Instructions(work=work, threads=max(1, available_cores() // jobs))
