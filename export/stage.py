"""The export stage: a checkpoint becomes the files that phones run.

    checkpoint ── llama.cpp's converter ──► student-f16.gguf ── llama.cpp's quantizer ──► student-q8_0.gguf
        │                                                                                student-q4_0.gguf
        │                                                                                student-q4_k_m.gguf
        └──────── onnxruntime-genai's builder ──► onnx-int4/

Each step is a child process with captured output. Room on the disk and in memory is checked before the first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import hash_file, hash_records, list_files
from ammd.errors import ExportError
from ammd.machine import available_memory_bytes, check_free_disk
from ammd.progress import progress

from .checkpoint_facts import CheckpointFacts, read_checkpoint_facts
from .gguf_contents import read_contents
from .quantize_gguf import quantize_gguf
from .settings import ExportSettings, Scheme
from .to_gguf import write_f16_gguf
from .to_onnx import WEIGHTS, write_int4_onnx

_QUANTIZED = {Scheme.GGUF_Q8_0: "Q8_0", Scheme.GGUF_Q4_0: "Q4_0", Scheme.GGUF_Q4_K_M: "Q4_K_M"}
# The most that one weight takes, fallbacks included, to estimate the room that is needed on the disk.
_DISK_BYTES_PER_WEIGHT = {
    Scheme.GGUF_F16: 2.0,
    Scheme.GGUF_Q8_0: 1.07,
    Scheme.GGUF_Q4_0: 1.07,
    Scheme.GGUF_Q4_K_M: 1.07,
    Scheme.ONNX_INT4: 1.0,
}
_TOKENIZER_BYTES = 16 << 20  # vocabulary and merges, in each file
# Measured: the ONNX builder on 135 M weights peaks at 2.1 GB, of which 0.4 GB are libraries.
_ONNX_MEMORY_BYTES_PER_WEIGHT, _GGUF_MEMORY_BYTES_PER_WEIGHT = 13, 4
_LIBRARIES_BYTES = 400 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInputs:
    """What the stage reads."""

    checkpoint: Path  # a folder with config.json, *.safetensors and tokenizer files


def run(inputs: ExportInputs, settings: ExportSettings, folder: Path) -> dict[str, Any]:
    """Make the files of every scheme in `settings` below `folder`.

    Returns:
        `{"artifacts": [...]}`: for each file its name, format, scheme, path (relative to `folder`), bytes,
        sha256, bits per weight and the tensors that are not stored as asked.

    Raises:
        ArtifactError: The checkpoint is incomplete or damaged, or the disk has too little room.
        FetchError: llama.cpp's source cannot be had.
        ExportError: A converter refuses the checkpoint, or there is too little memory.
    """
    facts = read_checkpoint_facts(inputs.checkpoint)
    check_free_disk(folder, need_bytes=estimate_disk_bytes(facts, settings.schemes), purpose="the export")
    _check_memory(facts, settings.schemes)
    f16 = folder / _file_name(Scheme.GGUF_F16)
    artifacts: list[dict[str, Any]] = []
    with progress("export", len(settings.schemes)) as report:
        for done, scheme in enumerate(settings.schemes):
            report(done, scheme.value)
            target = folder / _file_name(scheme)
            _write(scheme, inputs.checkpoint, f16=f16, target=target)
            artifacts.append(_describe(scheme, target, facts))
        report(len(settings.schemes))
    if Scheme.GGUF_F16 not in settings.schemes:
        f16.unlink(missing_ok=True)  # it was only the quantizer's source
    return {"artifacts": artifacts}


def estimate_disk_bytes(facts: CheckpointFacts, schemes: tuple[Scheme, ...]) -> int:
    """Return the most that the files of `schemes` can take, the quantizer's F16 source included."""
    written = set(schemes)
    if written & _QUANTIZED.keys():
        written.add(Scheme.GGUF_F16)
    weights = sum(_DISK_BYTES_PER_WEIGHT[scheme] for scheme in written) * facts.parameters
    if Scheme.ONNX_INT4 in written and not facts.tied_head:
        weights += 4 * facts.embedding_weights  # an embedding of its own stays float32
    return int(weights) + len(written) * _TOKENIZER_BYTES


def _check_memory(facts: CheckpointFacts, schemes: tuple[Scheme, ...]) -> None:
    each = _ONNX_MEMORY_BYTES_PER_WEIGHT if Scheme.ONNX_INT4 in schemes else _GGUF_MEMORY_BYTES_PER_WEIGHT
    need = _LIBRARIES_BYTES + each * facts.parameters
    free = available_memory_bytes()
    if free < need:
        raise ExportError(
            f"the export needs about {need / 2**20:.0f} MiB of memory, {free / 2**20:.0f} MiB are available",
            hint="close other programs, or leave out `onnx-int4`, which needs most of it",
            expected=need,
            found=free,
        )


def _file_name(scheme: Scheme) -> str:
    return scheme.value if scheme is Scheme.ONNX_INT4 else f"student-{_type_name(scheme)}.gguf"


def _type_name(scheme: Scheme) -> str:
    return scheme.value.partition("-")[2]


def _write(scheme: Scheme, checkpoint: Path, *, f16: Path, target: Path) -> None:
    if scheme is Scheme.ONNX_INT4:
        write_int4_onnx(checkpoint, target)
        return
    if not f16.exists():
        write_f16_gguf(checkpoint, f16, name=checkpoint.resolve().name)
    if scheme in _QUANTIZED:
        quantize_gguf(f16, target, type_name=_QUANTIZED[scheme])


def _describe(scheme: Scheme, target: Path, facts: CheckpointFacts) -> dict[str, Any]:
    if scheme is Scheme.ONNX_INT4:
        files = list_files(target)
        sizes = {record.path: record.bytes for record in files}
        return {
            "name": scheme.value,
            "format": "onnx-genai",
            "scheme": "int4",
            "path": target.name,
            "bytes": sum(sizes.values()),
            "sha256": hash_records(files),
            # Tables of the rotary embedding lie among the weights, about 2 MB; they are part of the cost.
            "bits_per_weight": 8 * sizes[WEIGHTS] / facts.parameters,
            "fallbacks": [],
        }
    contents = read_contents(target, scheme=_type_name(scheme))
    return {
        "name": scheme.value,
        "format": "gguf",
        "scheme": _type_name(scheme),
        "path": target.name,
        "bytes": target.stat().st_size,
        "sha256": hash_file(target),
        "bits_per_weight": contents.bits_per_weight,
        "fallbacks": [asdict(fallback) for fallback in contents.fallbacks],
    }
