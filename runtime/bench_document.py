"""The JSON document of `ammd bench`, read back and checked: what a comparison and other tools' formats start from.

Only what they need is named here; more keys are let be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ammd.errors import ArtifactError

SCHEMA = "ammd.bench/2"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rates = Annotated[tuple[Positive, ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]

# Fields that other tools get as they are, where a row has them.
EXPECTED_AND_MEMORY = (
    "load_cold_s",
    "load_warm_s",
    "rss_anon_bytes",
    "rss_file_bytes",
    "pss_bytes",
    "swap_bytes",
    "kv_cache_bytes",
    "weight_bytes_per_token",
    "kv_bytes_per_token",
    "bandwidth_bytes_per_s",
    "decode_ceiling_tokens_per_s",
    "decode_of_ceiling",
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Samples(_Record):
    """What one process measured, one number a pass."""

    ttft_s: Rates | None  # llama-bench does not time it
    prefill_tokens_per_s: Rates
    decode_tokens_per_s: Rates


class Row(_Record):
    """One model at one thread count."""

    engine: str  # library and version
    measured_at: str
    threads: Count
    prompt_tokens: Count
    decode_tokens: Count
    processes: Count
    warmup: int
    settings: Mapping[str, Any]  # in effect in the engine
    samples: Annotated[tuple[Samples, ...], Field(min_length=1)]  # one a process
    decode_depth_tokens: int | None = None  # that precede the decoded ones, where it is not the prompt
    cores: tuple[int, ...] | None = None  # that the processes were pinned to
    load_s: Positive | None
    ttft_s: Positive | None
    ttft_s_low: Positive | None
    ttft_s_high: Positive | None
    prefill_tokens_per_s: Positive
    prefill_tokens_per_s_low: Positive
    prefill_tokens_per_s_high: Positive
    decode_tokens_per_s: Positive
    decode_tokens_per_s_low: Positive
    decode_tokens_per_s_high: Positive
    token_p50_s: Positive | None
    token_p90_s: Positive | None
    token_p95_s: Positive | None
    token_p99_s: Positive | None
    peak_rss_bytes: Count | None
    load_cold_s: float | None = None
    load_warm_s: float | None = None
    rss_anon_bytes: int | None = None
    rss_file_bytes: int | None = None
    pss_bytes: int | None = None
    swap_bytes: int | None = None
    kv_cache_bytes: int | None = None
    weight_bytes_per_token: int | None = None
    kv_bytes_per_token: int | None = None
    bandwidth_bytes_per_s: float | None = None
    decode_ceiling_tokens_per_s: float | None = None
    decode_of_ceiling: float | None = None
    validity: Literal["good", "noisy", "invalid"] | None = None  # None: measured before there was a rule
    validity_reasons: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for one in self.samples:
            timed = (one.ttft_s, one.prefill_tokens_per_s, one.decode_tokens_per_s)
            if len({len(samples) for samples in timed if samples is not None}) != 1:
                raise ValueError("a process has unequally many samples")
        if len(self.samples) != self.processes:
            raise ValueError("there are not as many samples as processes")
        return self

    def by_process(self, metric: str) -> tuple[tuple[float, ...], ...]:
        """Return the samples of `metric`, one tuple a process; of what was not timed empty ones."""
        return tuple(getattr(one, metric) or () for one in self.samples)


class Failure(_Record):
    """How a process ended that brought no result."""

    ended: str


class FailedRow(_Record):
    """One model at one thread count that could not be measured."""

    engine: str  # library
    threads: Count
    failure: Failure


class File(_Record):
    """What was measured."""

    name: str
    kind: str
    bytes: int
    sha256: str
    weight_bytes: int | None
    parameters: int | None


class Model(_Record):
    """One model at every thread count."""

    file: File
    rows: tuple[Row, ...]
    failures: tuple[FailedRow, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _part_failures(cls, document: Any) -> Any:
        """Part the rows that tell of a failure from those with numbers."""
        if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
            return document
        rows = document["rows"]
        failed = [isinstance(row, dict) and row.get("failure") is not None for row in rows]
        return document | {
            "rows": [row for row, is_failed in zip(rows, failed, strict=True) if not is_failed],
            "failures": [row for row, is_failed in zip(rows, failed, strict=True) if is_failed],
        }

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if not self.rows and not self.failures:
            raise ValueError("there are no rows")
        return self


class Machine(_Record):
    """Where it was measured."""

    cpu: str | None
    cores: Count


class DeviceRecord(_Record):
    """The device on which it was measured."""

    name: str  # `ssh:pi@raspberrypi`
    model: str | None


class BenchDocument(_Record):
    """Everything that one `ammd bench` measured."""

    bench: Annotated[Mapping[str, Model], Field(min_length=1)]
    machine: Machine
    device: DeviceRecord | None = None  # None: here, without `--device`

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all models that have numbers."""
        return tuple(row for model in self.bench.values() for row in model.rows)


def read_document(path: Path) -> BenchDocument:
    """Read what an earlier `ammd bench --json` printed.

    Raises:
        ArtifactError: There is no such file, or it holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ArtifactError(f"cannot read `{path}`: {exc.strerror}", path=str(path)) from exc
    except (ValueError, RecursionError) as exc:
        raise ArtifactError(
            f"`{path}` is not JSON: {str(exc) or 'nested too deeply'}", hint=_HINT, path=str(path)
        ) from exc
    return parse_document(document, label=str(path))


def parse_document(document: object, *, label: str) -> BenchDocument:
    """Check a document; `label` is what messages call it.

    Raises:
        ArtifactError: It is something else, or incomplete.
    """
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise ArtifactError(
            f"`{label}` has the schema `{found}`, not `{SCHEMA}`",
            hint=_HINT,
            path=label,
            expected=SCHEMA,
            found=found,
        )
    try:
        return BenchDocument.model_validate(document)
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"`{label}` is damaged: `{place}`: {first['msg']}", hint=_HINT, path=label
        ) from exc


_HINT = "`ammd bench FILES --json > baseline.json` makes one"
