"""Signals that ask the program to end: taken like Ctrl-C, so that stages end and nothing half-written stays."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ammd.errors import INTERRUPTED

_ASKING = (signal.SIGTERM, signal.SIGHUP)  # `kill`, a job scheduler, a terminal that was closed


class Ended(KeyboardInterrupt):
    """A signal asks this program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number  # as shells have it


def exit_code_of(interrupt: BaseException) -> int:
    """Return what a program ends with that was interrupted so."""
    return interrupt.exit_code if isinstance(interrupt, Ended) else INTERRUPTED


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Raise `Ended` where such a signal arrives that nobody has a handler for, or ignores as `nohup` does."""
    taken = [number for number in _ASKING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended(number)
