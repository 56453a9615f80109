"""Tell llama.cpp's name for a byte-level tokenizer's way of cutting text into words.

llama.cpp's converter recognises a tokenizer by the hash of the ids that it gives to one fixed text. The hash
changes as soon as a vocabulary is trimmed or extended, although the cutting rule is the same; the converter
then stops. This module reads the rule itself from `tokenizer.json` and names the few that it knows exactly.
It never guesses: an unknown rule has no name. The ids of the finished file are compared later in any case.
The export names a file's rule by it, and a vocabulary is trimmed only where the trimmed one will have a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX, _ENDING = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_WORDS = (
    f"{_PREFIX}{_UPPER}*{_LOWER}+{_ENDING}|{_PREFIX}{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pre_tokenizer_name(document: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for the cutting rule of a `tokenizer.json`, or None if it is not known exactly.

    Known: `smollm` (single digits, then GPT-2's words), `gpt-2`, `llama-bpe` (up to three digits, whole words
    from the vocabulary first), `qwen2` (the same words with single digits, NFC text) and `gpt-4o` (words that end
    where an upper-case letter follows a lower-case one; llama.cpp sees that in Latin letters only).
    """
    model = document.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    normalizer = (document.get("normalizer") or {}).get("type")
    ignore_merges = bool(model.get("ignore_merges"))
    match _rule(document.get("pre_tokenizer") or {}), normalizer, ignore_merges:
        case ("digits", "gpt2-words"), None, False:
            return "smollm"
        case ("gpt2-words",), None, False:
            return "gpt-2"
        case (("split", words), "bytes"), None, True if words == LLAMA3_WORDS:
            return "llama-bpe"
        case (("split", words), "bytes"), "NFC", False if words == QWEN2_WORDS:
            return "qwen2"
        case (("split", words), "bytes"), None, False if words == O200K_WORDS:
            return "gpt-4o"
    return None


def _rule(pre_tokenizer: dict[str, Any]) -> tuple[object, ...]:
    """Return the steps of a pre-tokenizer in order, each reduced to what decides its behaviour."""
    is_sequence = pre_tokenizer.get("type") == "Sequence"
    steps = pre_tokenizer.get("pretokenizers", []) if is_sequence else [pre_tokenizer]
    return tuple(_step(step) for step in steps)


def _step(step: dict[str, Any]) -> object:
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "gpt2-words" if step.get("use_regex", True) else "bytes"
        case {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated"} if not step.get("invert"):
            return ("split", words)
        case {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True}:
            return ("split", words)  # the same for words that leave nothing out
    return "unknown"
