"""The folder that llama.cpp's converter reads: the checkpoint, with its tokenizer spelled as the converter knows it.

The converter was written for the files that models were published with. transformers 5 writes fewer of them:
no `tokenizer.model` for tokenizers of SentencePiece's kind, no list of added tokens in `tokenizer_config.json`, and a
tokenizer class of its own, by which the converter no longer tells the byte-level Phi-4-mini from Phi-3. All of it is in
`tokenizer.json`, so it is written out in a folder of links that exists while the converter runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ammd.scratch import scratch_folder

from .checkpoint_facts import read_json
from .sentencepiece_model import adds_space, is_sentencepiece, write_model
from .unigram_model import is_unigram, user_defined_tokens, write_unigram_model

_SETTINGS, _PIECES, _ADDED = "tokenizer_config.json", "tokenizer.model", "added_tokens.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@contextmanager
def converter_view(checkpoint: Path, tokenizer: Mapping[str, Any]) -> Iterator[Path]:
    """Give the folder to convert: the checkpoint itself where nothing has to be added.

    Args:
        checkpoint: The folder.
        tokenizer: Its `tokenizer.json`.

    Raises:
        ArtifactError: Its other tokenizer files are missing or damaged.
        ExportError: Its SentencePiece tokenizer cannot be said in a GGUF.
    """
    added = _added_files(checkpoint, tokenizer)
    if not added:
        yield checkpoint
        return
    with scratch_folder() as scratch:
        view = scratch / checkpoint.resolve().name  # the converter takes metadata from the name
        view.mkdir()
        for path in checkpoint.resolve().iterdir():
            if path.name not in added:
                (view / path.name).symlink_to(path)
        for name, content in added.items():
            (view / name).write_bytes(content)
        yield view


def _added_files(checkpoint: Path, document: Mapping[str, Any]) -> dict[str, bytes]:
    settings = read_json(checkpoint / _SETTINGS)
    special = {name: _text(settings.get(name)) for name in _NAMED}
    if is_unigram(document):
        return {
            _PIECES: write_unigram_model(document, special=special),
            _ADDED: _bytes(user_defined_tokens(document)),
        }
    if not is_sentencepiece(document):
        is_phi = "Phi3ForCausalLM" in read_json(checkpoint / "config.json").get("architectures", [])
        return {_SETTINGS: _bytes({**settings, "tokenizer_class": "GPT2Tokenizer"})} if is_phi else {}
    tokens = {str(entry["id"]): entry for entry in document.get("added_tokens", [])}
    settings = {
        **settings,
        "add_prefix_space": adds_space(document),
        "added_tokens_decoder": tokens | settings.get("added_tokens_decoder", {}),
    }
    files = {_SETTINGS: _bytes(settings)}
    if not (checkpoint / _PIECES).is_file():
        files[_PIECES] = write_model(document, special=special)
    return files


def _text(token: str | Mapping[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, Mapping) else token


def _bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
