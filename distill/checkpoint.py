"""Checkpoint folders: load them, save them, and make them from a GGUF.

A checkpoint is what `save_pretrained` writes, so every tool of the field reads it. Two things are mended on
the way out: a model read from a GGUF is marked quantized by transformers and would refuse to be saved, and
transformers 5 writes a tokenizer class name that older versions and converters do not know.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import DistillError

from .gguf_tokenizer import build_tokenizer, check_token_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load the language model of a checkpoint folder, causal or encoder-decoder, on the CPU, in evaluation mode.

    Raises:
        DistillError: transformers cannot read it, or it is not such a model.
    """
    from ammd.encoder_decoder import load_language_model

    _quiet_transformers()
    try:
        return load_language_model(folder, dtype=dtype)
    except (OSError, ValueError, KeyError) as exc:
        raise DistillError(f"cannot load a model from `{folder}`: {_first_line(exc)}") from exc


def copy_in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy with parameters in `dtype`, without gradients, adapters merged. Buffers stay as they are.

    `model.to(dtype)` would also round the rotary frequencies: at bfloat16 the angle of position 100 is then off
    by up to 0.3 radians. Nothing is held twice in the wider dtype on the way.
    """
    from torch.nn import Parameter

    from .lora import merged_layers

    cast: dict[int, Any] = {
        id(p): Parameter(p.detach().to(dtype), requires_grad=False) for p in model.parameters()
    }
    # Summed in the wider dtype, rounded once.
    cast |= {key: layer.to(dtype) for key, layer in merged_layers(model).items()}
    return copy.deepcopy(model, cast)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder.

    Raises:
        DistillError: It has none, no chat template, or no end token.
    """
    from transformers import AutoTokenizer

    _quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise DistillError(f"cannot load a tokenizer from `{folder}`: {_first_line(exc)}") from exc
    if tokenizer.eos_token_id is None:
        raise DistillError(f"the tokenizer in `{folder}` has no end token")
    return tokenizer


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer in the model's own dtype, so that every tool of the field reads them."""
    model.save_pretrained(folder)
    _write_rope_theta(folder / "config.json")
    save_tokenizer(tokenizer, folder)


def _write_rope_theta(path: Path) -> None:
    """Add the rotary base under its older name: transformers 4 silently takes 10000 where it is missing."""
    config = json.loads(path.read_text(encoding="utf-8"))
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        config.setdefault("rope_theta", theta)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer under names that transformers 4, 5 and the converters know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        # transformers 5's name for them; 4 expects a dictionary there and cannot read the file.
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if isinstance(tokenizer.chat_template, str):
        # transformers writes a file beside it; older converters look only here.
        config["chat_template"] = tokenizer.chat_template
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_gguf_as_checkpoint(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF's model, dequantized to float32, and its rebuilt tokenizer as a checkpoint.

    Raises:
        DistillError: The architecture or the tokenizer is not supported.
        TokenizerMismatchError: The rebuilt tokenizer does not agree with llama.cpp.
    """
    tokenizer = build_tokenizer(gguf_path)
    check_token_ids(tokenizer, gguf_path)
    model = _dequantize(gguf_path)
    model.generation_config = _generation_config(model, tokenizer)
    save_checkpoint(model, tokenizer, folder)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every id that ends a response: the tokenizer's end token and the model's own list."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    ids = {tokenizer.eos_token_id, *listed} - {None}
    return tuple(sorted(int(token_id) for token_id in ids))


def _dequantize(gguf_path: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    _quiet_transformers()
    try:
        # The loader draws a progress bar of its own, whatever transformers' switch says.
        with contextlib.redirect_stderr(io.StringIO()):
            marked = AutoModelForCausalLM.from_pretrained(
                gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32, local_files_only=True
            )
    except (OSError, ValueError, KeyError) as exc:
        raise DistillError(f"cannot read the model in `{gguf_path}`: {_first_line(exc)}") from exc
    # A fresh model with a clean config: the loaded one is marked quantized and refuses to be saved.
    settings: dict[str, Any] = marked.config.to_dict()
    for mark in ("quantization_config", "_pre_quantization_dtype", "dtype", "torch_dtype"):
        settings.pop(mark, None)
    config = type(marked.config).from_dict(settings)
    config.architectures = [type(marked).__name__]
    model = type(marked)(config)
    model.load_state_dict(marked.state_dict(), assign=True)
    model.tie_weights()
    model.config.dtype = torch.float32
    return model.eval()


def _generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import GenerationConfig

    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
