"""The child process that runs llama.cpp's own converter: `python -m ammd.export.gguf_converter TREE REQUEST ...`.

It differs from calling the script in four points: where the converter does not know a tokenizer's hash, the
rule in `tokenizer.json` is asked (`ammd.pre_tokenizer`), and if that is unknown too, the converter stops as ever;
that no BOS is added is written also where the tokenizer says so only by saying nothing; the file says of
itself what the request's `metadata` has, a JSON object of texts, not what the converter guesses from a folder's name;
and what a T5 with a tied head multiplies its last states by, for which llama.cpp has no place, goes into the last norm.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.llama_source import CONVERTER
from ammd.pre_tokenizer import pre_tokenizer_name

from .checkpoint_facts import read_json
from .file_metadata import BASE_MODEL_PREFIX


def main(arguments: Sequence[str]) -> None:
    """Run the converter of the tree `arguments[0]` with the request `arguments[1]` and the other arguments."""
    tree = Path(arguments[0])
    os.environ.pop("NO_LOCAL_GGUF", None)  # the converter goes with the gguf-py of its own tree
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    _name_unknown_hashes(importlib.import_module("conversion.base").TextModel)
    request = json.loads(arguments[1])
    if not request["adds_bos"]:
        _say_that_no_bos_is_added(importlib.import_module("gguf.vocab").SpecialVocab)
    if request["head_scale"] != 1:
        _scale_last_norm(importlib.import_module("conversion.t5").T5Model, request["head_scale"])
    _state_metadata(importlib.import_module("gguf.metadata").Metadata, request["metadata"])
    sys.argv = [str(tree / CONVERTER), *arguments[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _name_unknown_hashes(text_model: Any) -> None:
    by_hash = text_model.get_vocab_base_pre

    def by_hash_then_rule(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_hash(self, tokenizer))
        except NotImplementedError:
            name = pre_tokenizer_name(read_json(Path(self.dir_model) / "tokenizer.json"))
            if name is None:
                raise
            return name

    text_model.get_vocab_base_pre = by_hash_then_rule


def _state_metadata(metadata: Any, stated: Mapping[str, str]) -> None:
    guess, write = metadata.apply_metadata_heuristic, metadata.set_gguf_meta_model

    def read_card_only(found: Any, card: Any = None, *_names: Any, **_more: Any) -> Any:
        return guess(found, card)

    def write_and_state(self: Any, writer: Any) -> None:
        write(self, writer)
        values = writer.kv_data[0]
        if f"{BASE_MODEL_PREFIX}0.name" in stated:
            for key in [key for key in values if key.startswith(BASE_MODEL_PREFIX)]:
                del values[key]
            writer.add_base_model_count(1)
        for key, value in stated.items():
            values.pop(key, None)
            writer.add_string(key, value)

    metadata.apply_metadata_heuristic = staticmethod(read_card_only)
    metadata.set_gguf_meta_model = write_and_state


def _say_that_no_bos_is_added(special_vocab: Any) -> None:
    """Write so where nothing is said: unsaid, llama.cpp adds one for some kinds (`llama-bpe`)."""
    load = special_vocab.__init__

    def load_and_say(self: Any, *arguments: Any, **options: Any) -> None:
        load(self, *arguments, **options)
        self.add_special_token.setdefault("bos", False)

    special_vocab.__init__ = load_and_say


def _scale_last_norm(t5_model: Any, scale: float) -> None:
    convert = t5_model.modify_tensors

    def scale_and_convert(self: Any, tensor: Any, name: str, layer: int | None) -> Any:
        if name == "decoder.final_layer_norm.weight":
            tensor = tensor.float() * scale
        return convert(self, tensor, name, layer)

    t5_model.modify_tensors = scale_and_convert


def adds_bos(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Tell whether a `tokenizer.json`, or the `tokenizer_config.json` beside it, has anything that adds a BOS."""
    return bool(settings.get("add_bos_token")) or _adds_tokens(tokenizer.get("post_processor"))


def _adds_tokens(processor: Mapping[str, Any] | None) -> bool:
    """Tell whether a tokenizer's last step puts tokens before a text; transformers 5 writes one that puts none."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return False
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            return "SpecialToken" in pieces[0]
        case {"type": "Sequence", "processors": list(steps)}:
            return any(map(_adds_tokens, steps))
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
