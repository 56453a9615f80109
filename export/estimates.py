"""What an export will take, so that one that cannot end is refused before it begins.

The bytes are measured: checkpoints of 113, 135 and 680 million weights, in one file and in five. Converters take one
tensor after another, so memory follows from the largest of them and not from the model; importance matrix and mixture
run the model itself.
"""

from __future__ import annotations

from ammd.errors import ExportError
from ammd.machine import available_memory_bytes

from .checkpoint_facts import CheckpointFacts
from .schemes import ONNX_SCHEMES, STANDARD_SCHEMES, Scheme, mix_of
from .settings import ExportSettings

# The most that one weight takes on the disk, fallbacks included.
_DISK_BYTES_PER_WEIGHT = {
    Scheme.GGUF_F32: 4.0,
    Scheme.GGUF_F16: 2.0,
    Scheme.GGUF_BF16: 2.0,
    Scheme.ONNX_FP32: 4.0,
    Scheme.ONNX_FP16: 4.0,  # as it is before its matrices are halved
    Scheme.ONNX_INT8: 1.2,
    Scheme.ONNX_INT4: 1.0,
    Scheme.ONNX_STANDARD_FP32: 4.0,
    Scheme.ONNX_STANDARD_FP16: 2.0,
    Scheme.ONNX_STANDARD_INT8: 1.05,
    Scheme.ONNX_STANDARD_INT4: 1.15,
}
_QUANTIZED_BYTES_PER_WEIGHT = 1.07  # Q8_0, which stands in for types that do not fit
_TOKENIZER_BYTES = 16 << 20  # vocabulary and merges, in each file
_ONNX_SCRATCH_BYTES_PER_WEIGHT = 5.2  # the float32 graph and what is rounded, before the file is written
_LIBRARIES_BYTES = 450 << 20  # torch, transformers and a tokenizer
_FLOAT32_BYTES = 4
_GGUF_COPIES, _ONNX_COPIES, _STANDARD_COPIES = 1.5, 2.0, 1.5  # of the largest tensor, in float32
# Mapped pages of the checkpoint that have been read and not yet been let go of: on a slow disk the same ONNX export
# peaks at 629 to 803 MB from one run to the next.
_MAPPED_BYTES = 128 << 20
_IMATRIX_BYTES_PER_WEIGHT = 6  # the checkpoint in float32, with a batch of texts
_MIXTURE_BYTES_PER_WEIGHT = 28  # with its gradients, and errors of seven types


def disk_bytes(facts: CheckpointFacts, settings: ExportSettings) -> int:
    """Return the most that the files can take, what they are made from included."""
    written = set(settings.schemes)
    if any(mix_of(scheme) for scheme in settings.schemes) or Scheme.GGUF_MIXED in written:
        written.add(Scheme.GGUF_F16)
    if standard := written & set(STANDARD_SCHEMES):
        written.add(Scheme.ONNX_STANDARD_FP32)
    each = [_DISK_BYTES_PER_WEIGHT.get(scheme, _QUANTIZED_BYTES_PER_WEIGHT) for scheme in written]
    if quantized := written & {Scheme.ONNX_INT4, Scheme.ONNX_INT8}:
        each.append(_ONNX_SCRATCH_BYTES_PER_WEIGHT)
    if Scheme.ONNX_STANDARD_INT4 in written:
        each.append(_DISK_BYTES_PER_WEIGHT[Scheme.ONNX_STANDARD_INT4])  # what is rounded, before the file is
    weights = sum(each) * facts.parameters
    if not facts.tied_head:  # an embedding of its own stays float32
        weights += _FLOAT32_BYTES * facts.embedding_weights * len(quantized)
    if settings.onnx.ort_format:
        weights += sum(_DISK_BYTES_PER_WEIGHT[scheme] for scheme in standard) * facts.parameters
    return int(weights) + len(written) * _TOKENIZER_BYTES


def memory_bytes(facts: CheckpointFacts, settings: ExportSettings) -> int:
    """Return the most that one step of the export takes."""
    largest = _FLOAT32_BYTES * facts.largest_matrix_weights
    steps = [_GGUF_COPIES * largest]
    if set(settings.schemes) & set(ONNX_SCHEMES):
        steps.append(_ONNX_COPIES * largest + _MAPPED_BYTES)
    if set(settings.schemes) & set(STANDARD_SCHEMES):
        steps.append(_STANDARD_COPIES * largest)
    if settings.imatrix is not None:
        steps.append(_IMATRIX_BYTES_PER_WEIGHT * facts.parameters)
    if settings.mixed is not None:
        steps.append(_MIXTURE_BYTES_PER_WEIGHT * facts.parameters)
    return _LIBRARIES_BYTES + int(max(steps))


def check_memory(facts: CheckpointFacts, settings: ExportSettings) -> None:
    """Refuse an export for which this machine has too little memory.

    Raises:
        ExportError: It has; says how much is needed and how much is there.
    """
    need, free = memory_bytes(facts, settings), available_memory_bytes()
    if free < need:
        raise ExportError(
            f"the export needs about {need / 2**20:.0f} MiB of memory, {free / 2**20:.0f} MiB are available",
            hint="close other programs, or leave out `gguf-mixed` and `imatrix`, which run the model",
            expected=need,
            found=free,
        )
