"""What a decoder graph takes and gives, read from an open onnxruntime session.

A graph is run only if every input is known: one that is fed nothing would fail, and one that is fed a guess would
compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ammd.errors import EngineError

from .onnx_folder import OnnxFolder

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_INTEGERS = {"tensor(int64)": "int64", "tensor(int32)": "int32"}
_FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16"}
IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """The keys or the values of one layer."""

    past: str  # name as input
    present: str  # name as output
    heads: int
    head_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A decoder's inputs and outputs."""

    integers: Mapping[str, str]  # numpy type of the ids and of the mask and positions, if it takes them
    cache: tuple[CacheEntry, ...]
    cache_type: str  # numpy type
    logits_type: str  # numpy type
    vocab_size: int
    keeps_all: bool  # logits of every position, not of the last alone


def read_graph(session: Any, folder: OnnxFolder) -> Graph:
    """Read a session's inputs and outputs.

    Raises:
        EngineError: It is no decoder with a cache, or has an input, type or vocabulary that is not known here.
    """
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name: entry for entry in session.get_outputs()}
    past = [name for name in inputs if _PAST.fullmatch(name)]
    unknown = sorted(set(inputs) - {IDS, MASK, POSITIONS, *past})
    if unknown:
        raise _refusal(folder, f"has inputs that are not known here: {', '.join(unknown)}")
    presents = [name.replace("past_key_values", "present") for name in past]
    missing = [name for name in (LOGITS, *presents) if name not in outputs] or (
        [] if IDS in inputs else [IDS]
    )
    if missing:
        raise _refusal(folder, f"has no `{missing[0]}`")
    if not past:
        raise _refusal(
            folder, "takes no past_key_values", hint="export it with its cache, as text-generation-with-past"
        )
    flat = [name for name in past if len(inputs[name].shape) != 4]
    if flat:
        raise _refusal(folder, f"has `{flat[0]}` with {len(inputs[flat[0]].shape)} dimensions instead of 4")
    if len(outputs[LOGITS].shape) != 3:
        raise _refusal(folder, f"has `{LOGITS}` with {len(outputs[LOGITS].shape)} dimensions instead of 3")
    _check_vocabulary(outputs[LOGITS].shape, folder)
    types = {_type_of(inputs[name], _FLOATS, folder) for name in past}
    if len(types) > 1:
        raise _refusal(folder, "keeps keys and values in several types")
    return Graph(
        integers={
            name: _type_of(inputs[name], _INTEGERS, folder)
            for name in (IDS, MASK, POSITIONS)
            if name in inputs
        },
        cache=tuple(
            CacheEntry(
                past=name,
                present=present,
                heads=_size(inputs[name].shape[1], folder.kv_heads, name, folder),
                head_size=_size(inputs[name].shape[3], folder.head_size, name, folder),
            )
            for name, present in zip(past, presents, strict=True)
        ),
        cache_type=types.pop(),
        logits_type=_type_of(outputs[LOGITS], _FLOATS, folder),
        vocab_size=folder.vocab_size,
        keeps_all=outputs[LOGITS].shape[1] != 1,
    )


def _check_vocabulary(shape: Sequence[int | str | None], folder: OnnxFolder) -> None:
    vocabulary = shape[-1]
    if isinstance(vocabulary, int) and vocabulary != folder.vocab_size:
        raise EngineError(
            f"`{folder.graph}` gives logits of {vocabulary} tokens, "
            f"its configuration names {folder.vocab_size}",
            hint="the configuration belongs to another model",
            path=str(folder.graph),
            expected=folder.vocab_size,
            found=vocabulary,
        )


def _type_of(entry: Any, known: Mapping[str, str], folder: OnnxFolder) -> str:
    if entry.type not in known:
        raise _refusal(folder, f"has `{entry.name}` as {entry.type}; known are {', '.join(known)}")
    return known[entry.type]


def _size(declared: int | str | None, configured: int | None, name: str, folder: OnnxFolder) -> int:
    """Return a size of the cache: the graph's own, else the configuration's."""
    if isinstance(declared, int):
        return declared
    if configured is None:
        raise _refusal(
            folder, f"leaves the size `{declared}` of `{name}` open, and no configuration names it"
        )
    return configured


def _refusal(folder: OnnxFolder, fact: str, *, hint: str = "") -> EngineError:
    return EngineError(f"`{folder.graph}` {fact}", hint=hint, path=str(folder.graph))
