"""How the export stage stores each matrix of a student, so that training can go through the same rounding.

A checkpoint is saved in bfloat16; a GGUF goes from there through float16. What is then rounded to which format:

    gguf-q8_0   every matrix to Q8_0
    gguf-q4_0   every matrix to Q4_0; the head, and with it an embedding tied to it, to Q8_0 where 256 does not divide
                its rows, and else to Q6_K (llama-quant.cpp, llama_tensor_get_type_impl and tensor_type_fallback)
    onnx-int4   every matrix to 4 bits; the head, with an embedding tied to it, the projections to query, key and value
                and the MLP's last one in the layers that the builder calls sensitive, to 8 bits; an embedding of its
                own stays as it is (onnxruntime-genai's `make_matmul_mixed_precision`, which repeats Q4_K_M's choice)

Vectors stay as they are, and so do, in a GGUF, matrices whose rows 32 does not divide. Q6_K alone is not followed: its
scales come from a search over 19 candidates for each 16 weights, which would cost more than the training step, to
find steps four times finer than Q4_0's. A head stored as Q6_K is trained in float.

Only architectures whose files have been compared with this are known; others are refused.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from ammd.errors import DistillError

from .fake_quant import BLOCK_WEIGHTS, matmul_nbits, q4_0, q8_0

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .settings import QuantizedScheme

    Rounding = Callable[[torch.Tensor], torch.Tensor]  # float32 [rows, columns] to the same

KNOWN_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_K_BLOCK_WEIGHTS = 256
_FIRST_BUILDER = (0, 18)  # older ones store another mix, see `export/to_onnx.py`


def roundings_of(
    model: PreTrainedModel, scheme: QuantizedScheme | None
) -> Mapping[torch.nn.Parameter, Rounding]:
    """Return, for each parameter that a file of `scheme` rounds, what it is rounded by; nothing without a scheme.

    Raises:
        DistillError: It is not known how the export stage stores such a model.
    """
    if scheme is None:
        return {}
    _check_known(model, scheme)
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    roundings: dict[torch.nn.Parameter, Rounding] = {}
    for name, parameter in model.named_parameters():  # what is tied comes once
        if parameter.ndim < 2:
            continue
        if scheme == "onnx-int4":
            if parameter is embedding and parameter is not head:
                continue
            fine = parameter is head or _is_sensitive(name, layers=model.config.num_hidden_layers)
            roundings[parameter] = partial(_onnx, bits=8 if fine else 4)
        else:
            blocks = _gguf_blocks(scheme, columns=parameter.shape[1], is_head=parameter is head)
            if blocks:
                roundings[parameter] = partial(_gguf, blocks=blocks)
    return roundings


def _gguf_blocks(scheme: QuantizedScheme, *, columns: int, is_head: bool) -> Rounding | None:
    if columns % BLOCK_WEIGHTS:
        return None
    if scheme == "gguf-q8_0":
        return q8_0
    if is_head:
        return q8_0 if columns % _K_BLOCK_WEIGHTS else None
    return q4_0


def _gguf(weights: torch.Tensor, *, blocks: Rounding) -> torch.Tensor:
    return blocks(weights.bfloat16().half().float())


def _onnx(weights: torch.Tensor, *, bits: int) -> torch.Tensor:
    return matmul_nbits(weights.bfloat16().float(), bits=bits)


def _is_sensitive(name: str, *, layers: int) -> bool:
    found = re.search(r"\.layers\.(\d+)\.(?:self_attn\.[qkv]_proj|mlp\.down_proj)\.weight$", name)
    if found is None:
        return False
    layer = int(found[1])
    return layer < layers / 8 or layer >= 7 * layers / 8 or (layer - round(layers / 8)) % 3 == 2


def _check_known(model: PreTrainedModel, scheme: QuantizedScheme) -> None:
    kind = model.config.model_type
    if kind not in KNOWN_MODEL_TYPES:
        raise DistillError(
            f"`distill.quantize_as` does not know how a model of type `{kind}` is stored",
            hint=f"leave it out, or take a student of type {', '.join(KNOWN_MODEL_TYPES)}",
        )
    if scheme != "onnx-int4":
        return
    builder = _builder_version()
    release = tuple(int(part) for part in re.findall(r"\d+", builder)[:2])
    if release < _FIRST_BUILDER:
        raise DistillError(
            f"`distill.quantize_as` does not know the mix of int4 that onnxruntime-genai `{builder}` stores",
            hint="install onnxruntime-genai 0.18 or later, or leave `distill.quantize_as` out",
        )


def _builder_version() -> str:
    return importlib.metadata.version("onnxruntime-genai")
