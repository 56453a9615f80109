"""Mend what onnxruntime-genai's builder writes beside the graph: end tokens, sampling, tokenizer, template.

The builder takes the end token from one place; a chat model often has another one that ends a turn, and a
phone app that does not know it never stops. The tokenizer files are the checkpoint's own, not a copy that the
installed transformers rewrote: version 5 names a tokenizer class that older readers do not know.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammd.errors import ExportError

from .checkpoint_facts import read_json
from .genai_tokenizer import spell_out_digits
from .sentencepiece_model import is_sentencepiece

_COPIED = ("tokenizer.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_MARK = "ammd-end-of-answer"
# The one class for which onnxruntime-genai joins runs of spaces as SentencePiece does; for all others it cuts text into
# words first, whatever tokenizer.json says. That text gets a space in front it reads from tokenizer.json.
_WITHOUT_WORDS = "GemmaTokenizer"


def mend_genai_folder(folder: Path, checkpoint: Path) -> None:
    """Rewrite `genai_config.json` and the tokenizer files of a folder that the builder made.

    Raises:
        ExportError: The checkpoint names no end token.
        ArtifactError: One of its files is missing or damaged.
    """
    config = read_json(folder / "genai_config.json")
    generation_path = checkpoint / "generation_config.json"
    generation = read_json(generation_path) if generation_path.is_file() else {}
    ends = end_token_ids(checkpoint)
    if not ends:
        raise ExportError(
            f"`{checkpoint}` names no end token, its ONNX model would never stop",
            hint="set eos_token_id in generation_config.json",
        )
    model, search = config["model"], config["search"]
    model["eos_token_id"] = list(ends)
    if model.get("pad_token_id") is None:
        model["pad_token_id"] = ends[0]
    search.update({key: generation[key] for key in _SAMPLING if generation.get(key) is not None})
    search["max_length"] = model["context_length"]
    _write_json(folder / "genai_config.json", config)
    _copy_tokenizer(folder, checkpoint, context_tokens=int(model["context_length"]))


def end_token_ids(checkpoint: Path) -> tuple[int, ...]:
    """Return every id that ends an answer, the chat template's end of turn first.

    They come from the template (what it puts after an assistant's text), the tokenizer's end token,
    generation_config.json and config.json.
    """
    from transformers import PreTrainedTokenizerFast

    # Not AutoTokenizer: it looks the class up by the name that another version of transformers wrote.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        checkpoint, local_files_only=True, **_older_options(checkpoint)
    )
    found = [_turn_end(tokenizer), tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        path = checkpoint / name
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found += named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys(int(token_id) for token_id in found if token_id is not None))


def _older_options(checkpoint: Path) -> dict[str, Any]:
    """Return as transformers 4 spells it what transformers 5 writes as a list (T5's sentinels); nothing else."""
    import transformers

    extra = read_json(checkpoint / "tokenizer_config.json").get("extra_special_tokens")
    if transformers.__version__.startswith("4.") and isinstance(extra, list):
        return {"extra_special_tokens": {}, "additional_special_tokens": extra}
    return {}


def _turn_end(tokenizer: Any) -> int | None:
    """Return the special token that the chat template puts after an assistant's text, if it has one."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # a template may refuse such a conversation; the other sources remain
        return None
    _, mark, rest = text.rpartition(_MARK)
    ids = tokenizer.encode(rest.lstrip(), add_special_tokens=False) if mark else []
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None


def _copy_tokenizer(folder: Path, checkpoint: Path, *, context_tokens: int) -> None:
    for name in _COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    if (folder / "tokenizer.json").is_file():
        _write_json(folder / "tokenizer.json", spell_out_digits(read_json(folder / "tokenizer.json")))
    settings = read_json(checkpoint / "tokenizer_config.json")
    if is_sentencepiece(read_json(checkpoint / "tokenizer.json")):
        settings["tokenizer_class"] = _WITHOUT_WORDS
    elif settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_max_length"] = context_tokens  # often 1e30, which is no integer to some readers
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
