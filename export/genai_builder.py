"""The child process that runs onnxruntime-genai's builder: `python -m ammd.export.genai_builder SCRATCH ...`.

It differs from calling the builder's module in the memory that it takes (`builder_memory`), and in what the builder
would refuse or write wrongly, although its graphs can say it:

- SmolLM3's layers without rotary embedding: the builder gives them a rotary operator of its own and fails on the
  positions that a CPU graph does not have;
- Gemma 3's two rotary bases, which transformers 5 keeps by kind of layer; scaling belongs to the global ones alone;
- Gemma's factor of its embeddings, which the builder rounds to two decimals;
- the window of Mistral's and Phi-3's layers, which the builder since 0.16 takes from a list that they do not have;
- Llama's rotary scaling other than Llama 3's, which the builder for Llama forgets.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .builder_memory import (
    quantize_from_disk,
    round_columns_in_pieces,
    round_in_pieces,
    write_in_pieces,
)
from .mapped_files import released_mappings

_TIED_NAMES = "make_tied_quantized_embedding_input_names"
_BUILDER = "onnxruntime_genai.models.builder"


def main(arguments: Sequence[str]) -> None:
    """Run the builder with `arguments[1:]`, in which paths must be absolute; large files go to `arguments[0]`."""
    importlib.import_module("onnxruntime_genai.models")  # lets the script find its parts
    module = {
        name: importlib.import_module(f"builders.{name}")
        for name in ("base", "gemma", "llama", "mistral", "smollm")
    }
    _wrap(module["gemma"].Gemma3Model, "__init__", _with_flat_rope)
    _wrap(module["gemma"].GemmaModel, "__init__", _with_exact_scale)
    _wrap(module["base"].Model, "make_rotary_embedding_caches", _with_unscaled_local)
    _wrap(module["mistral"].MistralModel, "__init__", _with_windows)
    _wrap(module["smollm"].SmolLM3Model, "make_attention", _without_rope_where_said)
    if hasattr(module["base"].Model, _TIED_NAMES):  # builders before 0.18 do not round so (`to_onnx`)
        _wrap(module["base"].Model, _TIED_NAMES, _with_names_as_written)
    _keep_rope_scaling(module["base"].Model, module["llama"].LlamaModel)
    scratch = Path(arguments[0])
    write_in_pieces(module["base"].Model)
    quantize_from_disk(module["base"].Model, scratch)
    rounding = importlib.import_module("onnxruntime.quantization.neural_compressor.weight_only")
    round_in_pieces(rounding, scratch)
    own = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    round_columns_in_pieces(own.DefaultWeightOnlyQuantizer, scratch)
    sys.argv = [_BUILDER, *arguments[1:]]
    with released_mappings():
        runpy.run_module(_BUILDER, run_name="__main__")


def _wrap(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        return wrapper(original, self, *arguments, **options)

    setattr(owner, name, wrapped)


def _with_flat_rope(original: Any, self: Any, config: Any, *arguments: Any) -> None:
    by_kind = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in by_kind:
        config.rope_theta = by_kind["full_attention"]["rope_theta"]
        config.rope_local_base_freq = by_kind["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(by_kind["full_attention"])
    original(self, config, *arguments)


def _with_exact_scale(original: Any, self: Any, *arguments: Any) -> None:
    original(self, *arguments)
    self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5


def _with_unscaled_local(original: Any, self: Any, **names: Any) -> Any:
    if names.get("cos_cache_name") == "cos_cache_local":  # the global ones are made before it
        self.rope_attrs["rescale_factors"] = 1
    return original(self, **names)


def _with_windows(original: Any, self: Any, config: Any, *arguments: Any) -> None:
    if getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    original(self, config, *arguments)


def _without_rope_where_said(
    original: Any, self: Any, layer_id: int, *arguments: Any, **options: Any
) -> None:
    rope = self.attention_attrs["rope"]
    self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
    original(self, layer_id, *arguments, **options)
    self.attention_attrs["rope"] = rope


def _with_names_as_written(original: Any, self: Any) -> Any:
    if self.quantization_algo != "default":
        return original(self)
    bits, *_ = original(self)
    weights = "lm_head.MatMul.weight"
    zero_points = "" if self.quant_attrs["is_symmetric"] else f"{weights}_zero_points"
    return bits, f"{weights}_Q{bits}", f"{weights}_scales", zero_points


def _keep_rope_scaling(base: Any, llama: Any) -> None:
    if "make_rope_init" not in vars(llama):  # builders before 0.18 read it for all models alike
        return
    for_llama_3 = llama.make_rope_init

    def make_rope_init(self: Any, config: Any) -> None:
        is_llama_3 = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3"
        (for_llama_3 if is_llama_3 else base.make_rope_init)(self, config)

    llama.make_rope_init = make_rope_init


if __name__ == "__main__":
    main(sys.argv[1:])
