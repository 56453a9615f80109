"""The error family: every failure a user can meet, with the exit code that a script can branch on.

    AmmdError
      RecipeError                 the recipe or a command's argument is wrong    -> user, exit 2
      ArtifactError               a file is missing, altered or of another kind  -> user, exit 3
        FetchError                a pinned file cannot be had                    -> user, exit 3
      DistillError                training cannot start or go on                 -> engineer, exit 4
        DataError                 a data file or one of its lines is unusable
        TokenizerMismatchError    student and teacher do not share a tokenizer
        NonFiniteLossError        the loss or a gradient is not a number
        CollapseError             training goes on but can no longer recover
      ExportError                 a file cannot be converted or quantized        -> engineer, exit 5
        ParityError               an exported file does not behave as its student
      EngineError                 an engine cannot load or run a file            -> device owner, exit 6
        NotComparableError        two measurements differ in more than their numbers
      BudgetExceededError         a measured number is over its limit            -> release script, exit 7

A message says what failed with the value in backticks and where; `hint` says what to do next.
Facts that a script may want are attributes, given as keyword arguments.
"""

from __future__ import annotations

from typing import ClassVar

INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT, as shells have it


class AmmdError(Exception):
    """Base of every error that ammd raises on purpose.

    Attributes:
        hint: One sentence that says what to do next, or an empty string.
        facts: Values behind the message (paths, limits, findings) for scripts.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.hint = hint
        self.facts = facts

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by message and facts, so that an error crosses a process border whole."""
        return _rebuild, (type(self), str(self), self.hint, self.facts)


def _rebuild(kind: type[AmmdError], message: str, hint: str, facts: dict[str, object]) -> AmmdError:
    return kind(message, hint=hint, **facts)


class RecipeError(AmmdError):
    """The recipe or an argument is wrong: the user corrects it."""

    exit_code = 2


class ArtifactError(AmmdError):
    """A file is missing, altered, already there, or of another kind: the user restores or removes it."""

    exit_code = 3


class FetchError(ArtifactError):
    """A pinned file cannot be downloaded or has the wrong hash: the user connects or names a copy."""


class DistillError(AmmdError):
    """Training cannot start or go on: the engineer changes data, models or settings."""

    exit_code = 4


class DataError(DistillError):
    """A data file, or one line of it, cannot be used: the engineer mends the line that is named."""


class TokenizerMismatchError(DistillError):
    """Student and teacher number their tokens differently: the engineer picks a matching pair."""


class NonFiniteLossError(DistillError):
    """The loss or a gradient became infinite or not a number: the engineer lowers the learning rate."""


class CollapseError(DistillError):
    """Student or critic has degenerated in training: the engineer changes learning rate, weights or critic."""


class ExportError(AmmdError):
    """A checkpoint cannot be converted or quantized: the engineer reads the converter's own output."""

    exit_code = 5


class ParityError(ExportError):
    """An exported file does not behave as the student it came from: it must not be published."""


class EngineError(AmmdError):
    """An engine cannot be loaded or cannot run the file: the owner of the device acts."""

    exit_code = 6


class NotComparableError(EngineError):
    """Two measurements were made on unlike devices or in unlike ways: the device's owner measures again."""


class BudgetExceededError(AmmdError):
    """A measured number is over its limit: the release script stops."""

    exit_code = 7
