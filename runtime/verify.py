"""The verify stage: each exported file against the checkpoint, or no release.

One child takes the reference from the checkpoint, then each file is measured in a child of its own
(`parity`). Faults and exceeded limits end the stage with a message that names the file and the fact.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.errors import ParityError
from ammd.machine import available_cores
from ammd.progress import progress
from ammd.scratch import scratch_folder

from .artifact_ref import ArtifactRef, EngineKind
from .child import call
from .engine import START_TOKEN
from .limits import kl_limits
from .model_file import read_model_file
from .settings import VerifySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyInputs:
    """What is compared."""

    checkpoint: (
        Path | None
    )  # the student that the files were made from; None looks at the files by themselves
    heldout: Path | None  # JSONL, of a prepare stage or of prompts that the checkpoint then answers
    artifacts: tuple[ArtifactRef, ...]


def run(inputs: VerifyInputs, settings: VerifySettings, folder: Path) -> dict[str, Any]:
    """Prove each file and write `parity.json`.

    Raises:
        ParityError: A file disagrees with the checkpoint or is over its limit.
        ArtifactError: An input is missing or malformed.
        EngineError: A file cannot be loaded or run.
    """
    parity = measure_files(inputs, settings, folder)
    write_json(folder / "parity.json", parity)
    return {"parity": parity}


def verify_file(
    path: Path,
    *,
    against: Path | None,
    heldout: Path | None,
    settings: VerifySettings,
    engine: EngineKind | None = None,
) -> dict[str, Any]:
    """Prove one file against a checkpoint and return its record.

    Args:
        path: A GGUF or an ONNX folder.
        against: The checkpoint it was made from; None looks at the file by itself.
        heldout: JSONL with held-out prompts and responses; needed with `against`.
        settings: How much is compared. Limits are looked up under the file's scheme.
        engine: The engine; None for the one that the file's form calls for.

    Raises:
        ParityError: The file disagrees with the checkpoint or is over its limit.
        ArtifactError: An input is missing or malformed.
        EngineError: The file cannot be loaded or run.
    """
    artifact = ArtifactRef(name=artifact_name(path), path=path, engine=engine)
    inputs = VerifyInputs(checkpoint=against, heldout=heldout, artifacts=(artifact,))
    with scratch_folder() as folder:
        return measure_files(inputs, settings, folder)[artifact.name]


def artifact_name(path: Path) -> str:
    """Return a file's scheme name where its file name tells it (`student-q8_0.gguf`), else its stem."""
    if path.suffix == ".gguf":
        return f"gguf-{path.stem.rpartition('-')[2].lower()}"
    return path.name


def measure_files(inputs: VerifyInputs, settings: VerifySettings, folder: Path) -> dict[str, dict[str, Any]]:
    """Return a record for each file; `folder` takes the reference meanwhile.

    Raises:
        ParityError: A file disagrees with the checkpoint or is over its limit.
        ArtifactError: An input is missing or malformed.
        EngineError: A file cannot be loaded or run.
    """
    threads = available_cores()
    for artifact in inputs.artifacts:
        _ = artifact.kind  # a missing file is reported before any work
    records: dict[str, dict[str, Any]] = {}
    if inputs.checkpoint is None:
        return {artifact.name: _inspect(artifact, threads=threads) for artifact in inputs.artifacts}
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".reference-") as reference,
        progress("verify", len(inputs.artifacts) + 1) as report,
    ):
        report(0, "checkpoint")
        request = {
            "checkpoint": str(inputs.checkpoint),
            "heldout": str(inputs.heldout),
            "folder": reference,
            "texts": settings.texts,
            "greedy_prompts": settings.greedy_prompts,
            "greedy_tokens": settings.greedy_tokens,
            "threads": threads,
        }
        call("reference:build", request)
        for done, artifact in enumerate(inputs.artifacts, 1):
            report(done, artifact.name)
            records[artifact.name] = call(
                "parity:measure",
                {
                    "path": str(artifact.path),
                    "engine": artifact.kind.value,
                    "reference": reference,
                    "checkpoint": str(inputs.checkpoint),
                    "threads": threads,
                },
            )
        report(len(inputs.artifacts) + 1)
    for artifact in inputs.artifacts:
        has_encoder = records[artifact.name][START_TOKEN] is not None
        limits = kl_limits(settings.kl_limit_nats, has_encoder=has_encoder)
        limit = limits.get(artifact.name.rpartition("/")[2])
        records[artifact.name] = judge(artifact, records[artifact.name], limit=limit)
    return records


def _inspect(artifact: ArtifactRef, *, threads: int) -> dict[str, Any]:
    """Return a file's own facts, or refuse it.

    Raises:
        ParityError: It cannot be what a chat model has to be.
    """
    facts = read_model_file(artifact.path)
    request = {"path": str(artifact.path), "engine": artifact.kind.value, "threads": threads}
    record = asdict(facts) | call("inspection:inspect", request)
    if record["faults"]:
        raise ParityError(
            f"`{artifact.name}` ({artifact.path.name}) is faulty: {_first_of(record['faults'])}",
            hint="`--against CHECKPOINT` tells whether its checkpoint has the same fault",
            artifact=artifact.name,
            record=record,
        )
    return record


def judge(artifact: ArtifactRef, record: Mapping[str, Any], *, limit: float | None) -> dict[str, Any]:
    """Return the record with its limit, or refuse the file.

    A file without a limit is measured and shown; only faults refuse it. One with a limit claims to be the
    checkpoint, so its greedy text may also part only where its own logit error explains it.

    Raises:
        ParityError: Faults, a KL over the limit, or greedy text that parts without an explanation.
    """
    faults: Sequence[str] = record["faults"]
    if faults:
        raise _refusal(artifact, _first_of(faults), record)
    kl = record["kl_nats"]
    if not math.isfinite(kl):
        raise _refusal(artifact, "its logits are not numbers", record)
    if limit is not None:
        if kl >= limit:
            raise _refusal(artifact, f"KL is {kl:.3g} nats a token, the limit is {limit:.3g}", record)
        for place in record["divergences"]:
            if not place["explained"]:
                raise _refusal(artifact, _describe(place, record["max_logit_error"]), record)
    return {**record, "kl_limit_nats": limit}


def _first_of(faults: Sequence[str]) -> str:
    return faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")


def _describe(place: Mapping[str, Any], error: float) -> str:
    return (
        f"greedy text of prompt {place['prompt']} parts at token {place['step']} "
        f"({place['found']!r} for {place['expected']!r}): the checkpoint's logits lie "
        f"{place['logit_gap']:.3g} apart, the file's largest logit error is {error:.3g}"
    )


def _refusal(artifact: ArtifactRef, fact: str, record: Mapping[str, Any]) -> ParityError:
    return ParityError(
        f"`{artifact.name}` ({artifact.path.name}) does not behave as its checkpoint: {fact}",
        hint="export it again; if the fault stays, do not publish this file",
        artifact=artifact.name,
        record=dict(record),
    )
