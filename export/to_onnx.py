"""Checkpoint to ONNX with onnxruntime-genai's builder: a folder that genai opens by itself.

The builder writes a graph with grouped-query attention and a key-value cache in place, and the configuration
that goes with it. Quantized weights lie in blocks of 32, products are summed over int8 activations (accuracy level
4): the fast path of a CPU without a GPU beside it. `genai_config` then mends what the builder leaves open.
"""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ammd.errors import ExportError

from .captured import run_module
from .checkpoint_facts import read_checkpoint_facts, read_json
from .genai_config import mend_genai_folder
from .half_storage import halve_storage
from .misread import check_onnx
from .onnx_metadata import state_metadata
from .settings import OnnxSettings
from .shared_embedding import share_embedding

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
_BUILT_AS = {"fp16": "fp32"}  # what is stored otherwise than the builder writes it
_BUILDER_NAMES = {"mlas": "default"}  # which it is not here

# Measured on SmolLM2-135M-Instruct with genai 0.18: size of the folder and mean KL to the float32 model over
# 512 response tokens. In blocks of 32 all decode at one speed within the spread of the measurement.
#     symmetric, round to nearest                             90 MB   0.364 nats
#     asymmetric                                              92 MB   0.346
#     asymmetric, sensitive layers int8                      103 MB   0.250
#     asymmetric, sensitive layers and head int8             117 MB   0.182   <- chosen
#     the same with k_quant, twice the time to build         117 MB   0.182
#     the chosen one in blocks of 16, a fifth slower         137 MB   0.147
# `mlas` beside them, on the quickstart's student (113 M weights, 16 held-out texts), with the seconds to build:
#     the chosen one: rtn, k_quant, mlas                     102 MB   0.0974, 0.0971, 0.0971   12, 26, 8 s
#     the same, symmetric: rtn, mlas                        99.5 MB   0.135, 0.103
#     symmetric, all of it int4: rtn, mlas                  76.7 MB   0.378, 0.274
# Sensitive layers are those that llama.cpp's Q4_K_M keeps finer as well. The tied embedding is stored once.

# Builders before 0.18 have other names (some accepted later, but not obeyed) and tie the embedding to an int8
# head wrongly: 0.14 reads it at 1.32 nats, or stores it twice in 230 MB. Asymmetric int4 is right: 0.346.
_FIRST_WITH_NEW_OPTIONS = (0, 18)
_FIRST_TRANSFORMERS_WITH_ROPE_PARAMETERS = (5,)


def write_onnx(
    checkpoint: Path,
    folder: Path,
    *,
    precision: str = "int4",
    settings: OnnxSettings | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Build an ONNX model with its genai configuration and tokenizer files.

    Args:
        checkpoint: A folder that transformers can load.
        folder: The folder to write; it is created.
        precision: Of the weights: `fp32`, `fp16`, `int8` or `int4`.
        settings: How to quantize; absent stands for the defaults.
        metadata: What the graph says of itself.

    Raises:
        ExportError: The builder does not know the architecture or fails, its output is incomplete, or the
            installed transformers would misread the checkpoint.
    """
    _check_rope(checkpoint)
    is_new = _release("onnxruntime-genai") >= _FIRST_WITH_NEW_OPTIONS
    check_onnx(checkpoint, read_json(checkpoint / "config.json"), is_new=is_new)
    if precision == "int4":
        check_blocks(checkpoint, settings or OnnxSettings(), scheme="onnx-int4")
    options = builder_options(precision, settings or OnnxSettings())
    built_as = _BUILT_AS.get(precision, precision)
    with tempfile.TemporaryDirectory(prefix="ammd-onnx-", dir=folder.parent.absolute()) as scratch:
        paths = ["-i", str(checkpoint.absolute()), "-o", str(folder.absolute()), "-c", scratch]
        run_module(
            "ammd.export.genai_builder",
            [scratch, *paths, "-p", built_as, "-e", "cpu", "--extra_options", *options],
            task=f"build an ONNX model from `{checkpoint}`",
        )
    for name in (GRAPH, WEIGHTS, "genai_config.json"):
        if not (folder / name).is_file():
            raise ExportError(f"the ONNX builder wrote no `{name}`", path=str(folder))
    if precision == "int8" and read_checkpoint_facts(checkpoint).tied_head:
        share_embedding(folder / GRAPH, folder / WEIGHTS)
    if precision == "fp16":
        halve_storage(folder / GRAPH, folder / WEIGHTS)
    state_metadata(folder / GRAPH, metadata or {})
    mend_genai_folder(folder, checkpoint)


def _check_rope(checkpoint: Path) -> None:
    """Refuse a checkpoint whose rotary base transformers 4 would not find and silently take for 10000."""
    config = read_json(checkpoint / "config.json")
    is_new = "rope_parameters" in config and "rope_theta" not in config
    if is_new and _release("transformers") < _FIRST_TRANSFORMERS_WITH_ROPE_PARAMETERS:
        raise ExportError(
            f"`{checkpoint}` was saved by transformers 5, the one installed would misread its rotary base",
            hint="install transformers 5, or add `rope_theta` to the checkpoint's config.json",
            path=str(checkpoint),
        )


def check_blocks(checkpoint: Path, settings: OnnxSettings, *, scheme: str) -> None:
    """Refuse rows of an odd number of blocks: zero points of two blocks share a byte, and onnxruntime fails there.

    Raises:
        ExportError: A matrix has such rows.
    """
    if settings.symmetric and settings.algorithm != "k_quant":
        return  # no zero points
    size = settings.block_size
    for name, weights in read_checkpoint_facts(checkpoint).row_weights.items():
        if -(-weights // size) % 2:
            raise ExportError(
                f"`{scheme}` in blocks of {size} cannot hold `{name}`: its rows of {weights} weights have an odd "
                "number of blocks",
                hint="set `export.onnx.block_size` to one that gives an even number, or `export.onnx.symmetric = true`",
                tensor=name,
            )


def builder_options(precision: str, settings: OnnxSettings) -> tuple[str, ...]:
    """Return the builder's options, as `KEY=VALUE`.

    Raises:
        ExportError: The installed builder cannot quantize so.
    """
    if precision not in ("int4", "int8"):
        return ("hf_token=false",)
    is_new = _release("onnxruntime-genai") >= _FIRST_WITH_NEW_OPTIONS
    if not is_new and precision == "int8":
        raise ExportError(
            f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')} cannot build `onnx-int8`",
            hint="install onnxruntime-genai 0.18 or later, or leave the scheme out",
        )
    if not is_new and settings.algorithm == "mlas":
        raise ExportError(
            f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')} cannot round with `mlas`",
            hint="install onnxruntime-genai 0.18 or later, or set `export.onnx.algorithm` to `rtn`",
        )
    prefix = "" if is_new else "int4_"
    options = [
        f"{prefix}block_size={settings.block_size}",
        f"{prefix}accuracy_level={settings.accuracy_level}",
        f"{prefix}algo_config={_BUILDER_NAMES.get(settings.algorithm, settings.algorithm)}",
        f"{prefix}is_symmetric={str(settings.symmetric).lower()}",
        "hf_token=false",
    ]
    if precision == "int4" and settings.head == "float32":
        if not is_new:
            version = importlib.metadata.version("onnxruntime-genai")
            raise ExportError(
                f"onnxruntime-genai {version} cannot keep the head of `onnx-int4`",
                hint="install onnxruntime-genai 0.18 or later, or set `export.onnx.head` to `int8`",
            )
        # Both, so that a tied matrix is stored once.
        options.append("nodes_to_exclude=/lm_head/MatMul,/model/embed_tokens/Gather")
    finer = {"last_matmul": settings.head, "mixed_layers": settings.sensitive_layers}
    mixed = [f"{group}:int8" for group, kind in finer.items() if kind == "int8"]
    if is_new and precision == "int4" and mixed:
        options.append(f"matmul_mixed_precision={','.join(mixed)}")
    return tuple(options)


def _release(library: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version(library))[:2])
