"""What is proven of each measured file: the verify stage's word on the same hash, so that no fast wrong file wins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError
from ammd.runtime.llama_bench_rows import Proof

from .alone import part_of_run

NOT_PROVEN = "not proven"
_CHECKPOINT = "checkpoint"  # a kind of file: what others are proven against


def find_proofs(files: Sequence[Path]) -> dict[str, Proof]:
    """Return what the verify stages of the runs in which `files` lie have found, by the hash of the file.

    Raises:
        ArtifactError: Such a stage's record cannot be read.
    """
    proofs: dict[str, Proof] = {}
    for path in {found for file in files if (found := part_of_run(file, "verify/parity.json"))}:
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
            proofs |= proofs_of(records)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ArtifactError(
                f"`{path}` is not what a verify stage writes: {exc}",
                hint="`ammd run` writes it anew once its folder is removed",
                path=str(path),
            ) from exc
    return proofs


def proofs_of(parity: Mapping[str, Mapping[str, Any]]) -> dict[str, Proof]:
    """Return the proofs in a verify stage's records, by the hash of the file; a record without a hash proves none."""
    return {
        record["sha256"]: Proof(kl_nats=record.get("kl_nats"), passed=not record["faults"])
        for record in parity.values()
        if "sha256" in record
    }


def name_proofs(models: Iterable[dict[str, Any]], proofs: Mapping[str, Proof]) -> None:
    """Write `proofs` and `kl_nats` into the records of some models and into each of their rows."""
    for record in models:
        file = record.get("file")
        if file is None:  # of a benchmark from before files had hashes
            continue
        proof = proofs.get(file["sha256"])
        if proof:
            word: str | None = "passed" if proof.passed else "failed"
        else:
            word = None if file["kind"] == _CHECKPOINT else NOT_PROVEN
        found = {"proofs": word, "kl_nats": proof.kl_nats if proof else None}
        for row in (record, *record.get("rows", ())):
            row.update(found)
