"""Find stop strings in text that arrives in pieces, whatever the pieces' borders.

Text that may be the beginning of a stop string is held back until it is known to be none. The string that is complete
first ends the text; of several that end at the same character, the longest. So the outcome depends on the characters
alone, not on how a tokenizer or an engine divides them.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """A filter between a stream of text and its reader."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def pass_on(self, text: str) -> tuple[str, bool]:
        """Return what may be shown now, and whether a stop string has ended the text."""
        self._held += text
        if ends := [self._end_of(stop) for stop in self._stops if stop in self._held]:
            _, start = min(ends)
            shown, self._held = self._held[:start], ""
            return shown, True
        waiting = max((self._begun(stop) for stop in self._stops), default=0)
        cut = len(self._held) - waiting
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def rest(self) -> str:
        """Return what is still held back: the text is over, so it is no stop string."""
        held, self._held = self._held, ""
        return held

    def _end_of(self, stop: str) -> tuple[int, int]:
        start = self._held.index(stop)
        return start + len(stop), start

    def _begun(self, stop: str) -> int:
        """Return how many characters at the end are the beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
