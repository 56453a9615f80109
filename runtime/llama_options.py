"""What llama.cpp is told beside threads and context: each of these changes speed, memory or arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class KvType(StrEnum):
    """How keys and values are stored; the names are llama.cpp's."""

    F32 = "f32"
    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaOptions:
    """One way of running a GGUF. The defaults are those of proofs, answers and chats."""

    flash_attention: bool = True
    kv_type: KvType = KvType.F16
    batch_tokens: int = 512  # llama.cpp's own default for a prompt
    micro_batch_tokens: int = 512  # of a batch, computed at once
    memory_map: bool = False


LLAMA_DEFAULTS = LlamaOptions()


def asked_options(request: Mapping[str, Any]) -> LlamaOptions:
    """Return the options that a child's request names as `llama`, in the words of the recipe."""
    found = request.get("llama")
    if not found:
        return LLAMA_DEFAULTS
    return LlamaOptions(
        flash_attention=found["flash_attention"],
        kv_type=KvType(found["kv_type"]),
        batch_tokens=found["batch"],
        micro_batch_tokens=min(found["micro_batch"], found["batch"]),
        memory_map=found["mmap"],
    )
