"""The export stage: a checkpoint becomes the files that phones run.

    checkpoint ── llama.cpp's converter ──► student-f16.gguf ── llama.cpp's quantizer ──► student-q8_0.gguf, …
        │                                                              ▲
        ├──────── hooks on texts ──► student-imatrix.gguf ─────────────┘
        ├──────── onnxruntime-genai's builder ──► onnx-int4/, …
        └──────── optimum's exporter ──► onnx-standard-int8/, …

Each step is a child process with captured output. Room on the disk and in memory is checked before the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import hash_file, whole_record
from ammd.errors import ExportError
from ammd.machine import check_free_disk
from ammd.progress import progress

from .captured import measured
from .checkpoint_facts import CheckpointFacts, read_checkpoint_facts, read_json
from .encoder_decoders import check_encoder_decoder
from .estimates import check_memory, disk_bytes
from .file_metadata import Provenance, checkpoint_metadata, scheme_metadata
from .gguf_contents import read_contents
from .imatrix import read_imatrix
from .measure_imatrix import measure_imatrix
from .mixed_gguf import write_mixed_gguf
from .quantize_gguf import quantize_gguf
from .schemes import CONVERTED, GGUF_SCHEMES, ONNX_SCHEMES, STANDARD_SCHEMES, Scheme, mix_of
from .settings import ExportSettings, ImatrixSettings, OnnxSettings
from .to_gguf import write_gguf
from .to_onnx import WEIGHTS, check_blocks, write_onnx
from .to_standard_onnx import check_exporter, quantize_standard_onnx, write_ort, write_standard_onnx

IMATRIX = "student-imatrix.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInputs:
    """What the stage reads."""

    checkpoint: Path  # a folder with config.json, *.safetensors and tokenizer files
    texts: Path | None = None  # JSONL to measure an importance matrix on, unless the settings name others
    imatrix: Path | None = None  # one that is there already; the settings then say only that it is wanted
    provenance: Provenance | None = (
        None  # what the files say of their origin; without, what the checkpoint tells
    )


def run(inputs: ExportInputs, settings: ExportSettings, folder: Path) -> dict[str, Any]:
    """Make the files of every scheme in `settings` below `folder`.

    Returns:
        `{"artifacts": [...], "imatrix": ...}`: for each file its name, format, scheme, path (relative to `folder`),
        bytes, sha256, bits per weight, the tensors that are not stored as asked, and seconds and peak memory of making
        it (the first quantized GGUF's with the conversion and the importance matrix, the first standard ONNX's
        with the trace); of that matrix, if there is one,
        path, sha256 and how many matrices and tokens it covers.

    Raises:
        ArtifactError: The checkpoint is incomplete or damaged, or the disk has too little room.
        FetchError: llama.cpp's source cannot be had.
        ExportError: A converter refuses the checkpoint, or there is too little memory.
    """
    facts = read_checkpoint_facts(inputs.checkpoint)
    check_encoder_decoder(read_json(inputs.checkpoint / "config.json"), settings)
    _check_standard(inputs.checkpoint, settings)
    check_free_disk(folder, need_bytes=disk_bytes(facts, settings), purpose="the export")
    check_memory(facts, settings)
    texts = _texts(inputs, settings)
    if inputs.imatrix:
        read_imatrix(inputs.imatrix)  # refused before any work, if at all
    origin = checkpoint_metadata(inputs.checkpoint, inputs.provenance)
    f16 = folder / _file_name(Scheme.GGUF_F16)
    artifacts: list[dict[str, Any]] = []
    imatrix: dict[str, Any] | None = None
    with progress("export", len(settings.schemes)) as report:
        for done, scheme in enumerate(settings.schemes):
            report(done, scheme.value)
            target = folder / _file_name(scheme)
            meant: Mapping[str, str] = {}
            more: dict[str, Any] = {}
            with measured() as cost:
                if scheme in (*ONNX_SCHEMES, *STANDARD_SCHEMES):
                    _build(inputs.checkpoint, target, scheme, settings.onnx, origin)
                elif scheme in CONVERTED:
                    _convert(inputs.checkpoint, target, scheme, origin)
                else:
                    if not f16.exists():
                        _convert(inputs.checkpoint, f16, Scheme.GGUF_F16, origin)
                    if settings.imatrix and imatrix is None:
                        report(done, "imatrix")
                        imatrix = _imatrix(inputs, settings.imatrix, f16=f16, target=folder / IMATRIX)
                        report(done, scheme.value)
                    matrix = folder / IMATRIX if imatrix else None
                    own = scheme_metadata(scheme, imatrix=matrix)
                    if settings.mixed and scheme is Scheme.GGUF_MIXED:
                        meant, choice = write_mixed_gguf(
                            inputs.checkpoint,
                            target,
                            f16=f16,
                            settings=settings.mixed,
                            texts=texts,
                            imatrix=matrix,
                            metadata=own,
                        )
                        more["choice"] = choice
                    elif mix := mix_of(scheme):
                        meant = quantize_gguf(
                            f16, target, type_name=mix.file_type, imatrix=matrix, metadata=own
                        )
            more |= {"seconds": round(cost.seconds, 3), "peak_rss_bytes": cost.peak_rss_bytes}
            artifacts.append(_describe(scheme, target, facts, meant=meant) | more)
        report(len(settings.schemes))
    _remove_sources(folder, settings)
    return {"artifacts": artifacts, "imatrix": imatrix}


def _file_name(scheme: Scheme) -> str:
    return f"student-{scheme.type_name}.gguf" if scheme in GGUF_SCHEMES else scheme.value


def _convert(checkpoint: Path, target: Path, scheme: Scheme, origin: Mapping[str, str]) -> None:
    if not target.exists():  # F16 may be there already, as the quantizer's source
        metadata = {**origin, **scheme_metadata(scheme)}
        write_gguf(
            checkpoint, target, name=origin["general.name"], type_name=scheme.type_name, metadata=metadata
        )


def _check_standard(checkpoint: Path, settings: ExportSettings) -> None:
    """Refuse, before any work, what a scheme of standard operators would refuse late."""
    if set(settings.schemes) & set(STANDARD_SCHEMES):
        check_exporter()
    if Scheme.ONNX_STANDARD_INT4 in settings.schemes:
        check_blocks(checkpoint, settings.onnx, scheme=Scheme.ONNX_STANDARD_INT4)


def _remove_sources(folder: Path, settings: ExportSettings) -> None:
    """Remove what quantizers started from, unless it is wanted itself."""
    if Scheme.GGUF_F16 not in settings.schemes:
        (folder / _file_name(Scheme.GGUF_F16)).unlink(missing_ok=True)
    if Scheme.ONNX_STANDARD_FP32 not in settings.schemes:
        shutil.rmtree(folder / _file_name(Scheme.ONNX_STANDARD_FP32), ignore_errors=True)


def _build(
    checkpoint: Path, target: Path, scheme: Scheme, settings: OnnxSettings, origin: Mapping[str, str]
) -> None:
    metadata = _onnx_metadata(scheme, origin)
    if scheme in ONNX_SCHEMES:
        write_onnx(checkpoint, target, precision=scheme.type_name, settings=settings, metadata=metadata)
        return
    float32 = target.with_name(_file_name(Scheme.ONNX_STANDARD_FP32))
    if not float32.exists():  # as the quantizer's source it is made once
        own = _onnx_metadata(Scheme.ONNX_STANDARD_FP32, origin)
        write_standard_onnx(checkpoint, float32, metadata=own)
    if target != float32:
        precision = scheme.type_name.removeprefix("standard-")
        quantize_standard_onnx(float32, target, precision=precision, settings=settings, metadata=metadata)
    if settings.ort_format:
        write_ort(target)


def _onnx_metadata(scheme: Scheme, origin: Mapping[str, str]) -> dict[str, str]:
    metadata = {**origin, **scheme_metadata(scheme)}
    if "general.license" in origin:  # the one key for it that the ONNX standard names
        metadata["model_license"] = origin["general.license"]
    return metadata


def _texts(inputs: ExportInputs, settings: ExportSettings) -> list[Path]:
    """Return what importance matrix and mixture are measured on; nothing where neither is wanted."""
    named = settings.imatrix.texts if settings.imatrix else ()
    texts = [Path(text) for text in named] or [path for path in [inputs.texts] if path]
    if settings.imatrix and not inputs.imatrix and not texts:
        raise ExportError(
            "there are no texts to measure an importance matrix on", hint="name some in `imatrix.texts`"
        )
    if settings.mixed and not texts:
        raise ExportError("there are no texts to measure a mixture on", hint="name some in `imatrix.texts`")
    return texts


def _imatrix(inputs: ExportInputs, settings: ImatrixSettings, *, f16: Path, target: Path) -> dict[str, Any]:
    """Take the importance matrix that is given, or measure one."""
    if inputs.imatrix:
        shutil.copyfile(inputs.imatrix, target)
    else:
        texts = [Path(text) for text in settings.texts] or [path for path in [inputs.texts] if path]
        measure_imatrix(inputs.checkpoint, target, gguf=f16, texts=texts, max_tokens=settings.max_tokens)
    return _describe_imatrix(target)


def _describe_imatrix(path: Path) -> dict[str, Any]:
    imatrix = read_imatrix(path)
    return {
        "path": path.name,
        "sha256": hash_file(path),
        "matrices": len(imatrix.sums),
        "tokens": int(max(count.max() for count in imatrix.tokens.values())),
        "datasets": list(imatrix.datasets),
    }


def _describe(
    scheme: Scheme, target: Path, facts: CheckpointFacts, *, meant: Mapping[str, str]
) -> dict[str, Any]:
    whole = whole_record(target)
    if scheme in (*ONNX_SCHEMES, *STANDARD_SCHEMES):
        return {
            "name": scheme.value,
            "format": "onnx-genai" if scheme in ONNX_SCHEMES else "onnx",
            "scheme": scheme.type_name,
            "path": target.name,
            "bytes": whole.bytes,
            "sha256": whole.sha256,
            # Tables of the rotary embedding lie among the weights, about 2 MB; they are part of the cost.
            "bits_per_weight": 8 * (target / WEIGHTS).stat().st_size / facts.parameters,
            "fallbacks": [],
        }
    mix = mix_of(scheme)
    contents = read_contents(target, meant=meant, head=mix.head if mix else None)
    return {
        "name": scheme.value,
        "format": "gguf",
        "scheme": scheme.type_name,
        "path": target.name,
        "bytes": whole.bytes,
        "sha256": whole.sha256,
        "bits_per_weight": contents.bits_per_weight,
        "fallbacks": [asdict(fallback) for fallback in contents.fallbacks],
    }
