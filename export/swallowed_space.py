"""Special tokens that swallow the white space after them, as Phi-3's do.

A GGUF cannot say so of a token. llama.cpp goes by the model's name instead: in one that is called phi-3, all special
tokens do but for three (llama-vocab.cpp, "set attributes by model name"). So the name that is written decides whether
`<|user|>` and a line break are one token or two, and it has to go with the tokenizer, not with the folder's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ammd.errors import ExportError

from .unigram_model import is_unigram

_PHI_3 = re.compile(r"phi-?3", re.IGNORECASE)
_NEVER = ("<unk>", "<s>", "<|endoftext|>")


def name_in_file(name: str, tokenizer: Mapping[str, Any]) -> str:
    """Return the name to write into a GGUF, so that llama.cpp reads special tokens as `tokenizer.json` says.

    Raises:
        ExportError: No name makes it so.
    """
    if is_unigram(tokenizer):  # llama.cpp drops white space beside all special tokens of one
        return _PHI_3.sub("phi 3", name)
    special = [entry for entry in tokenizer.get("added_tokens", []) if entry.get("special")]
    swallowing = {entry["content"] for entry in special if entry.get("rstrip")}
    before = [entry["content"] for entry in special if entry.get("lstrip")]
    if not swallowing and not before:
        return _PHI_3.sub("phi 3", name)
    if before or swallowing != {entry["content"] for entry in special} - set(_NEVER):
        token = min(before or swallowing)
        raise ExportError(
            f"`tokenizer.json` lets the special token `{token}` swallow white space beside it, which no GGUF can say",
            hint="leave the GGUF schemes out, or take `lstrip` and `rstrip` from its added tokens",
            token=token,
        )
    return name if _PHI_3.search(name) else f"phi-3 {name}"
