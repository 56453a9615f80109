"""The child process that runs llama.cpp's own converter: `python -m ammd.export.gguf_converter TREE ...`.

It differs from calling the script in two points: where the converter does not know a tokenizer's hash, the
rule in `tokenizer.json` is asked (`ammd.pre_tokenizer`), and if that is unknown too, the converter stops as ever; and
that no BOS is added is written also where the tokenizer says so only by saying nothing.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.pre_tokenizer import pre_tokenizer_name

from .checkpoint_facts import read_json
from .llama_source import CONVERTER


def main(arguments: Sequence[str]) -> None:
    """Run the converter of the tree `arguments[0]` with the other arguments."""
    tree = Path(arguments[0])
    os.environ.pop("NO_LOCAL_GGUF", None)  # the converter goes with the gguf-py of its own tree
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    _name_unknown_hashes(importlib.import_module("conversion.base").TextModel)
    _say_that_no_bos_is_added(importlib.import_module("gguf.vocab").SpecialVocab)
    sys.argv = [str(tree / CONVERTER), *arguments[1:]]
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


def _say_that_no_bos_is_added(special_vocab: Any) -> None:
    """Where nothing in the tokenizer adds a BOS, write so: unsaid, llama.cpp adds one for some kinds (`llama-bpe`)."""
    load = special_vocab.__init__

    def load_and_say(self: Any, path: Any, *arguments: Any, **options: Any) -> None:
        load(self, path, *arguments, **options)
        tokenizer, settings = Path(path) / "tokenizer.json", Path(path) / "tokenizer_config.json"
        if "bos" in self.add_special_token or not tokenizer.is_file():
            return
        adds = settings.is_file() and read_json(settings).get("add_bos_token")
        if not adds and not _adds_tokens(read_json(tokenizer).get("post_processor")):
            self.add_special_token["bos"] = False

    special_vocab.__init__ = load_and_say


def _adds_tokens(processor: Mapping[str, Any] | None) -> bool:
    """Tell whether a tokenizer's last step puts tokens around a text; transformers 5 writes one that puts none."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return False
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            return any("SpecialToken" in piece for piece in pieces)
        case {"type": "Sequence", "processors": list(steps)}:
            return any(map(_adds_tokens, steps))
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
