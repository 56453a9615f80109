"""The `[budget]` part of a recipe: what every exported file has to keep before it may be published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from ammd.byte_size import SizeText, parse_size
from ammd.settings import Settings

SHARE = "_kept"  # ends the name of a metric that is a share of the reference's


class KeptSettings(Settings):
    """Smallest share that a file keeps of the teacher's score, or of the `baseline`'s file of the same name."""

    rouge_l: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """ROUGE-L against the teacher's answers; the teacher's own is 1."""

    rouge_l_reference: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """ROUGE-L against the data's own responses, the task score; of the teacher it is the share on the same prompts."""


class LimitSettings(Settings):
    """Limits of one file, in place of those of all files."""

    size: SizeText | None = None
    """Largest file or folder, as `90 MB` or `85 MiB`."""

    peak_rss: SizeText | None = None
    """Largest peak of resident memory, likewise; of memory and speed counts what the table shows, at the thread count
    that decodes fastest."""

    ttft_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest time to the first token, in seconds."""

    decode_tokens_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Lowest decode rate."""

    kl_to_teacher_nats: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest KL to the teacher; `verify.kl_limit_nats` limits the distance to the student."""

    kept: KeptSettings = KeptSettings()
    """Quality, relative."""

    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by metric: a column of the table, or a score with `SHARE` behind it."""
        numbers = {
            "bytes": None if self.size is None else parse_size(self.size),
            "peak_rss_bytes": None if self.peak_rss is None else parse_size(self.peak_rss),
            "ttft_s": self.ttft_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "kl_to_teacher_nats": self.kl_to_teacher_nats,
        }
        numbers |= {f"{name}{SHARE}": share for name, share in self.kept.model_dump().items()}
        return {metric: limit for metric, limit in numbers.items() if limit is not None}


class BudgetSettings(LimitSettings):
    """What every exported file has to keep. It makes no stage anew: a changed budget judges a finished run at once."""

    baseline: str | None = Field(default=None, min_length=1)
    """A finished run, as `ammd report` takes it, whose files of the same name are the reference of `kept`."""

    files: Mapping[str, LimitSettings] = Field(default={})
    """Limits of single files by name, as in `export.schemes`; they go before those of all."""

    def limits_of(self, file: str) -> dict[str, float]:
        """Return the limits of one file, by metric."""
        own = self.files.get(file)
        return self.limits() | (own.limits() if own else {})

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        tables: tuple[LimitSettings, ...] = (self, *self.files.values())
        if self.baseline and all(table.kept == KeptSettings() for table in tables):
            raise ValueError("`baseline` is the reference of `kept`, which names no score")
        if not any(table.limits() for table in tables):
            raise ValueError("names no limit")
        return self
