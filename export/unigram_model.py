"""SentencePiece's model of a Unigram tokenizer (T5's), made again from a checkpoint's `tokenizer.json`.

llama.cpp's converter reads pieces, scores and the table that normalizes characters from SentencePiece's own file, which
transformers 5 does not write; `tokenizer.json` has all three. White space at the end of a text and in front of a
special token llama.cpp drops, as SentencePiece does; some of transformers' tokenizers make a token of it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from ammd.errors import ExportError

from .sentencepiece_model import adds_space, steps

_EXTRA_SPACES = " {2,}"  # the pattern by which transformers writes SentencePiece's remove_extra_whitespaces
_KNOWN = {"Precompiled", "Replace", "Strip", "Prepend", "Metaspace", "WhitespaceSplit"}


def is_unigram(document: Mapping[str, Any]) -> bool:
    """Tell whether a `tokenizer.json` document chooses pieces by their probabilities."""
    return (document.get("model") or {}).get("type") == "Unigram"


def write_unigram_model(document: Mapping[str, Any], *, special: Mapping[str, str | None]) -> bytes:
    """Return the bytes of a `tokenizer.model`.

    Args:
        document: A `tokenizer.json` for which `is_unigram` holds.
        special: Texts of `bos_token`, `eos_token`, `pad_token`.

    Raises:
        ExportError: It does something to a text that SentencePiece has no word for.
    """
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model, kinds = document["model"], schema.ModelProto.SentencePiece.Type
    added = {entry["id"]: entry for entry in document.get("added_tokens", [])}
    pieces = [(piece, float(score)) for piece, score in model["vocab"]]
    while len(pieces) in added:  # that have no place in the vocabulary of their own
        pieces.append((added[len(pieces)]["content"], 0.0))
    proto = schema.ModelProto()
    for number, (piece, score) in enumerate(pieces):
        if number == model["unk_id"]:
            kind = kinds.UNKNOWN
        elif number in added:
            kind = kinds.CONTROL if added[number].get("special") else kinds.USER_DEFINED
        else:
            kind = kinds.NORMAL
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = schema.TrainerSpec.ModelType.UNIGRAM
    trainer.vocab_size = len(pieces)
    trainer.unk_piece = pieces[model["unk_id"]][0]
    for name in ("bos", "eos", "pad"):
        if text := special.get(f"{name}_token"):
            setattr(trainer, f"{name}_piece", text)
    _write_normalizer(proto.normalizer_spec, document)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def user_defined_tokens(document: Mapping[str, Any]) -> dict[str, int]:
    """Return the added tokens that are ordinary text, with their ids; the converter has a list of them."""
    return {
        entry["content"]: entry["id"]
        for entry in document.get("added_tokens", [])
        if not entry.get("special")
    }


def _write_normalizer(spec: Any, document: Mapping[str, Any]) -> None:
    found = [*steps(document, "normalizer"), *steps(document, "pre_tokenizer")]
    unknown = [step["type"] for step in found if step["type"] not in _KNOWN or _replaces_text(step)]
    if unknown or document["model"].get("byte_fallback"):
        raise ExportError(
            f"`tokenizer.json` reads text by `{(unknown or ['byte_fallback'])[0]}`, which no GGUF of a Unigram "
            "tokenizer can say",
            hint="leave the GGUF schemes out",
        )
    if not any(step["type"] in ("WhitespaceSplit", "Strip", "Replace") for step in found):
        raise ExportError(
            "`tokenizer.json` reads several spaces as several, which no GGUF of a Unigram tokenizer can say: llama.cpp "
            "then puts one more in front of a text that begins with a space",
            hint="leave the GGUF schemes out, or give the tokenizer the normalizer of the published T5s",
        )
    spec.name = "ammd"
    tables = [step["precompiled_charsmap"] for step in found if step["type"] == "Precompiled"]
    if tables:
        spec.precompiled_charsmap = base64.b64decode(tables[0])
    spec.add_dummy_prefix = adds_space(document)
    spec.remove_extra_whitespaces = True


def _replaces_text(step: Mapping[str, Any]) -> bool:
    """Tell whether a step changes more than the number of spaces."""
    return bool(step["type"] == "Replace" and step["pattern"].get("Regex") != _EXTRA_SPACES)
