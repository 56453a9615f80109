"""The child process that runs llama.cpp's own converter: `python -m ammd.export.gguf_converter TREE ...`.

It differs from calling the script in one point: where the converter does not know a tokenizer's hash, the
rule in `tokenizer.json` is asked (`ammd.pre_tokenizer`); if that is unknown too, the converter stops as ever.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Sequence
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


if __name__ == "__main__":
    main(sys.argv[1:])
