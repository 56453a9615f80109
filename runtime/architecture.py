"""What one decoded token reads, as the architecture implies: weights, and keys and values a token of context.

Weights are counted as the file stores them. Every matrix is read whole, a table of embeddings only by the row of the
token; one that is also the head is read whole, once. An engine that keeps weights wider than the file does reads more
than is counted here. Of a mixture's experts those count that a token is sent to. What is not known is None.

Of an encoder-decoder a token reads the decoder, and the encoder is read once a prompt. torch and onnxruntime keep keys
and values of the source, so that a token reads those and not the matrices that make them, and a token of either text
adds as many numbers. llama.cpp computes them anew from the encoder's output for each token: it reads these matrices
too, and what it keeps of the source is no cache, so nothing is told of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.encoder_decoder import MODEL_TYPES
from ammd.errors import ArtifactError
from ammd.gguf_reader import open_gguf
from ammd.safetensors_header import read_headers

from . import onnx_folder
from .artifact_ref import EngineKind, detect_kind
from .model_file import checkpoint_facts
from .onnx_folder import read_json
from .onnx_weights import read_onnx_weights

_KV_BYTES: Mapping[str, float] = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}
EXPERTS = "_exps."  # in the names of tensors that hold all experts of a layer
_GGUF_TABLES = ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight")
_ENCODER = "enc."  # in front of the names of an encoder's tensors, of an encoder-decoder in GGUF
_SOURCE_MATRICES = ("EncDecAttention.k.weight", "EncDecAttention.v.weight")
_LOADED_BYTES = 4  # torch holds a checkpoint in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a token costs to read. None is not known."""

    weight_bytes_per_token: int | None = None
    kv_values_per_token: int | None = None  # numbers in keys and values of one token, over all layers
    window_tokens: int | None = None  # beyond which some layer does not look back

    def kv_bytes_per_token(self, kv_type: str, *, context_tokens: int) -> float | None:
        """Return what one token takes in a cache of this type; None where a window cuts the context."""
        width = _KV_BYTES.get(kv_type)
        if self.kv_values_per_token is None or width is None:
            return None
        if self.window_tokens and context_tokens > self.window_tokens:
            return None
        return self.kv_values_per_token * width


def read_architecture(path: Path) -> Architecture:
    """Return what the files of a model tell; of files that are not understood, nothing."""
    kind = detect_kind(path)
    try:
        if kind is EngineKind.LLAMA_CPP:
            return _of_gguf(path)
        if kind is EngineKind.TORCH:
            return _of_checkpoint(path)
        return Architecture(**read_onnx_weights(path))
    except (ArtifactError, OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return Architecture()  # its engine may run it all the same


def has_encoder(path: Path) -> bool:
    """Tell whether an exported file is an encoder-decoder's; one that is not understood is told by its engine."""
    if detect_kind(path) is not EngineKind.LLAMA_CPP:
        return onnx_folder.has_encoder(path)
    try:
        return any(str(tensor.name).startswith(_ENCODER) for tensor in open_gguf(path).tensors)
    except ArtifactError:
        return False


def _of_gguf(path: Path) -> Architecture:
    reader = open_gguf(path)
    family = reader.fields["general.architecture"].contents()
    tensors = {
        str(tensor.name): tensor for tensor in reader.tensors if not str(tensor.name).startswith(_ENCODER)
    }
    tables = _GGUF_TABLES if "output.weight" in tensors else _GGUF_TABLES[1:]
    weights = sum(
        int(tensor.n_bytes)
        * (used_experts(reader) if EXPERTS in name else 1)
        / (int(tensor.shape[-1]) if name in tables else 1)
        for name, tensor in tensors.items()
    )

    def number(key: str, default: Any = None) -> Any:
        field = reader.fields.get(f"{family}.{key}")
        return field.contents() if field else default

    heads, layers = number("attention.head_count"), number("block_count")
    values = None
    reads_encoder = len(tensors) < len(reader.tensors)
    if heads and layers and not reads_encoder and not number("attention.kv_lora_rank"):
        groups = number("attention.head_count_kv", heads)
        by_layer = groups if isinstance(groups, list) else [groups] * layers
        size = number("embedding_length") // (heads[0] if isinstance(heads, list) else heads)
        width = number("attention.key_length", size) + number("attention.value_length", size)
        values = sum(by_layer) * width
    return Architecture(
        weight_bytes_per_token=round(weights),
        kv_values_per_token=values,
        window_tokens=number("attention.sliding_window"),
    )


def used_experts(reader: Any) -> float:
    """Return the share of a GGUF's experts that a token is sent to.

    Raises:
        KeyError: It does not say.
    """
    family = reader.fields["general.architecture"].contents()
    used, whole = (
        reader.fields[f"{family}.{key}"].contents() for key in ("expert_used_count", "expert_count")
    )
    return float(used) / float(whole)


def _of_checkpoint(folder: Path) -> Architecture:
    config = read_json(folder / "config.json")
    if config.get("is_encoder_decoder"):
        return _of_t5(folder, config)
    if "text_config" in config or config.get("num_experts") or config.get("num_local_experts"):
        return Architecture()
    tied = checkpoint_facts(folder)["tied_head"]
    weights = sum(
        math.prod(shape[1:] if not tied and name.endswith("embed_tokens.weight") else shape)
        for name, shape in ((name, entry["shape"]) for name, entry in read_headers(folder).items())
    )
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    groups = config.get("num_key_value_heads") or heads
    windowed = config.get("use_sliding_window", True)
    known = set(config.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}
    return Architecture(
        weight_bytes_per_token=weights * _LOADED_BYTES,
        kv_values_per_token=2 * config["num_hidden_layers"] * groups * size if known else None,
        window_tokens=config.get("sliding_window") if windowed else None,
    )


def _of_t5(folder: Path, config: Mapping[str, Any]) -> Architecture:
    if config["model_type"] not in MODEL_TYPES:
        return Architecture()
    headers = read_headers(folder)
    tied = checkpoint_facts(folder)["tied_head"]
    weights = config["vocab_size"] * config["d_model"] + (
        0 if tied else config["d_model"]
    )  # head, row of the token
    weights += sum(
        math.prod(entry["shape"])
        for name, entry in headers.items()
        if name.startswith("decoder.") and not name.endswith((*_SOURCE_MATRICES, "embed_tokens.weight"))
    )
    layers = config.get("num_decoder_layers") or config["num_layers"]
    return Architecture(
        weight_bytes_per_token=weights * _LOADED_BYTES,
        kv_values_per_token=2 * layers * config["num_heads"] * config["d_kv"],
    )
