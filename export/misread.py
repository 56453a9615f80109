"""Checkpoints that a runtime would load without a word and compute wrongly; refused by name before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.encoder_decoder import MODEL_TYPES
from ammd.errors import ExportError

_T5_GATES = ("relu", "gated-gelu", "gated-gelu_new")  # that llama.cpp computes (models/t5.cpp)
_T5_DISTANCE = 128  # from which llama.cpp tells positions apart no more (llama-graph.cpp)
_GEMMA3 = ("gemma3", "gemma3_text")
_GEMMA3_27B_LAYERS = 62  # by which llama.cpp knows the one that scales otherwise (models/gemma3.cpp)
_GEMMA3_STEP = 6  # llama.cpp lets each layer of this multiple see the whole text (models/gemma3.cpp)
_SMOLLM3_STEP = (
    4  # llama.cpp leaves out the rotary embedding in each layer of this multiple (models/smollm3.cpp)
)
_ONE_PATTERN = f"every {_GEMMA3_STEP}th layer sees the whole text and no other"
_NEW_BUILDER = "install onnxruntime-genai 0.18 or later, or leave the ONNX schemes out"
_NEITHER = "no format holds it: such a model can be trained and measured here, but not exported"
_WINDOW_IS_OPTIONAL = ("qwen2", "qwen3", "smollm3")  # off unless use_sliding_window says otherwise
_WINDOWLESS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3")  # whose windows llama.cpp leaves out
_LLAMA3_ROPE = ("llama", "smollm3")  # which have a place for Llama 3's rotary scaling
_ROTARY_STEP = 16  # onnxruntime's attention turns so many of a head's numbers at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """Makes the errors of one format."""

    path: Path  # of the configuration
    cannot: str
    hint: str

    def __call__(self, key: str, value: object, why: str, *, hint: str = "") -> ExportError:
        return ExportError(
            f"`{self.path}` has {key} = {value}, which {self.cannot}: {why}",
            hint=hint or self.hint,
            key=key,
        )


def check_gguf(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp's GGUF has no place for, and its code takes for granted.

    Raises:
        ExportError: Names the setting.
    """
    refusal = _Refusal(
        path=checkpoint / "config.json",
        cannot="no GGUF can say",
        hint="leave the GGUF schemes out; ONNX files hold it",
    )
    kind = config.get("model_type")
    if kind in _GEMMA3:
        _check_gemma3(refusal, config)
    if kind in MODEL_TYPES:
        _check_t5(refusal, config)
    if kind == "smollm3":
        layers = config.get("no_rope_layers")
        expected = [int((layer + 1) % _SMOLLM3_STEP != 0) for layer in range(len(layers or ()))]
        if layers and list(map(int, layers)) != expected:
            raise refusal(
                "no_rope_layers",
                layers,
                f"llama.cpp leaves the rotary embedding out of every {_SMOLLM3_STEP}th layer and no other",
            )
    window = _window(config)
    if kind in _WINDOWLESS and window is not None:
        raise refusal(
            "sliding_window",
            window,
            "llama.cpp lets every layer of this model see the whole text",
            hint=f"leave the GGUF schemes out; or set max_position_embeddings = {window}, up to which both agree",
        )
    known = ["default", "linear", "yarn"]
    known += ["llama3"] if kind in (*_LLAMA3_ROPE, "mistral") else []
    known += ["longrope", "su"] if kind == "phi3" else []
    _check_rope(refusal, config, known, "llama.cpp would leave the scaling out")


def check_onnx(checkpoint: Path, config: Mapping[str, Any], *, is_new: bool) -> None:
    """Refuse what onnxruntime-genai's builder would leave out of a graph, or onnxruntime could not run.

    Args:
        checkpoint: The folder.
        config: Its configuration.
        is_new: The builder knows which of a model's layers see a window.

    Raises:
        ExportError: Names the setting.
    """
    refusal = _Refusal(
        path=checkpoint / "config.json",
        cannot="no ONNX file of the builder can say",
        hint="leave the ONNX schemes out; GGUF files hold it",
    )
    kind = config.get("model_type")
    known = ["default", "linear"]  # YaRN's bounds the builder takes unrounded, unlike transformers
    known += ["llama3"] if kind in _LLAMA3_ROPE else []
    known += ["longrope", "su"] if kind == "phi3" else []
    _check_rope(refusal, config, known, "the builder leaves it out or computes it otherwise")
    layers = config.get("layer_types") or []
    if not is_new and kind in _GEMMA3 and layers and layers != _gemma3_layers(len(layers)):
        raise refusal("layer_types", layers, _ONE_PATTERN, hint=_NEW_BUILDER)
    if not is_new and kind in ("qwen2", "qwen3") and _window(config) and len(set(layers)) > 1:
        raise refusal("layer_types", layers, "this builder gives a window to all layers", hint=_NEW_BUILDER)
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    share = _rope(config).get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if int(size * share) % _ROTARY_STEP:
        raise refusal(
            "partial_rotary_factor" if share != 1 else "head_dim",
            share if share != 1 else size,
            f"onnxruntime turns heads in steps of {_ROTARY_STEP} numbers, here are {int(size * share)}",
        )
    if config.get("use_bidirectional_attention"):
        raise refusal(
            "use_bidirectional_attention", True, "each token sees only those before it", hint=_NEITHER
        )


def _check_t5(refusal: _Refusal, config: Mapping[str, Any]) -> None:
    gate = config.get("feed_forward_proj", "relu" if config["model_type"] == "t5" else "gated-gelu")
    if gate not in _T5_GATES:
        raise refusal(
            "feed_forward_proj", gate, "llama.cpp computes relu, or with a gate gelu (tanh), and nothing else"
        )
    distance = config.get("relative_attention_max_distance", _T5_DISTANCE)
    if distance != _T5_DISTANCE:
        raise refusal("relative_attention_max_distance", distance, f"llama.cpp has {_T5_DISTANCE}")
    layers = config["num_layers"]
    if (config.get("num_decoder_layers") or layers) > layers:
        raise refusal(
            "num_decoder_layers",
            config["num_decoder_layers"],
            f"llama.cpp has names and a cache for as many layers as the encoder has, here {layers}",
            hint="leave the GGUF schemes out, or keep at least as many layers in the encoder",
        )


def _check_gemma3(refusal: _Refusal, config: Mapping[str, Any]) -> None:
    scale, size = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if config.get("num_hidden_layers") == _GEMMA3_27B_LAYERS:
        size = config["hidden_size"] // config["num_attention_heads"]
    if scale is not None and size is not None and scale != size:
        raise refusal("query_pre_attn_scalar", scale, f"llama.cpp scales queries by {size}")
    layers = config.get("layer_types") or []
    if layers and layers != _gemma3_layers(len(layers)):
        raise refusal("layer_types", layers, f"in llama.cpp {_ONE_PATTERN}")
    if config.get("use_bidirectional_attention"):
        raise refusal(
            "use_bidirectional_attention", True, "each token sees only those before it", hint=_NEITHER
        )


def _gemma3_layers(count: int) -> list[str]:
    return ["sliding_attention" if (n + 1) % _GEMMA3_STEP else "full_attention" for n in range(count)]


def _window(config: Mapping[str, Any]) -> int | None:
    """Return the window that some layer has, if texts can be longer than it."""
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    layers = config.get("layer_types") or ["sliding_attention"]
    is_on = config.get("use_sliding_window", config.get("model_type") not in _WINDOW_IS_OPTIONAL)
    if (
        window is None
        or not is_on
        or "sliding_attention" not in layers
        or (longest is not None and window >= longest)
    ):
        return None
    return int(window)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rotary settings of the layers that see the whole text, under either of their names."""
    found: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_kind: Mapping[str, Any] | None = found.get("full_attention")
    return found if by_kind is None else by_kind


def _check_rope(refusal: _Refusal, config: Mapping[str, Any], known: Sequence[str], why: str) -> None:
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    for rope, names in ((_rope(config), known), (local, ("default",))):
        name = rope.get("rope_type", rope.get("type", "default"))
        if name not in names:
            raise refusal("rope_type", name, why, hint=f"train with one of: {', '.join(names)}")
