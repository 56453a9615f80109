"""SentencePiece's `tokenizer.model`, made again from the `tokenizer.json` that goes with a checkpoint.

transformers 5 saves tokenizers of this kind (Gemma, Mistral, Phi-3, Llama 2) as `tokenizer.json` alone, while the
converter of llama.cpp reads pieces and scores from `tokenizer.model`; without one it stops, or takes them for
byte-level tokenizers. Nothing is lost in between: SentencePiece joins the pair whose piece scores best,
`tokenizer.json` the pair that comes first in its list, so the place of a piece's pairs there is its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ammd.errors import ExportError

_SPACE = "▁"
_LEAST_SCORE = -1e9  # of pieces that no pair makes


def is_sentencepiece(document: Mapping[str, Any]) -> bool:
    """Tell whether a `tokenizer.json` document came from SentencePiece's BPE: characters, and bytes for the others."""
    model = document.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def adds_space(document: Mapping[str, Any]) -> bool:
    """Tell whether text gets a space in front, also after each special token.

    Raises:
        ExportError: Only the beginning of a text gets one, which no GGUF can say.
    """
    found = [*steps(document, "normalizer"), *steps(document, "pre_tokenizer")]
    schemes = [step.get("prepend_scheme", "always") for step in found if step["type"] == "Metaspace"]
    if "first" in schemes:
        raise ExportError(
            "`tokenizer.json` puts a space in front of a text, but not after its special tokens (Metaspace, "
            "prepend_scheme = first), which no GGUF can say: llama.cpp does both or neither",
            hint="leave the GGUF schemes out, or give the tokenizer the scheme that the model was trained with",
        )
    return "always" in schemes or any(step["type"] == "Prepend" for step in found)


def write_model(document: Mapping[str, Any], *, special: Mapping[str, str | None]) -> bytes:
    """Return the bytes of a `tokenizer.model`.

    Args:
        document: A `tokenizer.json` of this kind.
        special: Texts of `bos_token`, `eos_token`, `unk_token`, `pad_token`.

    Raises:
        ExportError: Its pairs are not in SentencePiece's order.
    """
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model, kinds = document["model"], schema.ModelProto.SentencePiece.Type
    scores = _scores(document)
    added = {entry["content"]: bool(entry.get("special")) for entry in document.get("added_tokens", [])}
    proto = schema.ModelProto()
    for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1]):
        if piece == (model.get("unk_token") or special.get("unk_token")):
            kind = kinds.UNKNOWN
        elif piece in added:
            kind = kinds.CONTROL if added[piece] else kinds.USER_DEFINED
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            kind = kinds.BYTE
        else:
            kind = kinds.NORMAL
        proto.pieces.add(piece=piece, score=scores.get(piece, _LEAST_SCORE), type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = schema.TrainerSpec.ModelType.BPE
    trainer.byte_fallback = True
    trainer.vocab_size = len(model["vocab"])
    trainer.unk_piece = model.get("unk_token") or special.get("unk_token") or "<unk>"
    for name in ("bos", "eos", "pad"):
        if text := special.get(f"{name}_token"):
            setattr(trainer, f"{name}_piece", text)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = adds_space(document)
    proto.normalizer_spec.remove_extra_whitespaces = False
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _scores(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the score of each piece that a pair makes: the better, the earlier its pairs come."""
    added = {entry["content"] for entry in document.get("added_tokens", [])}
    scores: dict[str, float] = {}
    last = ""
    for pair in document["model"]["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        piece = left + right
        if piece in added:  # found as a whole before any pair is joined
            continue
        if piece != last and piece in scores:
            raise ExportError(
                f"`tokenizer.json` joins other pairs between those that make `{piece}`, which is no order of "
                "SentencePiece's",
                hint="put the `tokenizer.model` that this tokenizer was made from beside it, or leave the GGUF "
                "schemes out",
                piece=piece,
            )
        scores.setdefault(piece, -float(len(scores)))
        last = piece
    return scores


def steps(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, those of a sequence one by one."""
    rule = document.get(key)
    if not rule:
        return []
    nested = rule.get("normalizers", rule.get("pretokenizers"))
    return list(nested) if rule["type"] == "Sequence" else [rule]
