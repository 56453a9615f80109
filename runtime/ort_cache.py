"""One sequence's keys and values, and the session that extends them: in place, or handed from step to step.

GroupQueryAttention writes new keys behind the old ones when past and present are one buffer, so a cache of the
whole context is taken once and a step copies nothing. A graph of standard operators concatenates instead and
gives a longer present: it becomes the past of the next step without leaving onnxruntime.

Handing over sixty values takes 0.2 ms a token through `run_with_ort_values`, and 0.6 through an IO binding, which
has to be told the place of each output anew; so only the cache that stays where it is has bindings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .ort_graph import IDS, LOGITS, MASK, POSITIONS, Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .engine import Logits

    Integers = NDArray[np.integer[Any]]
    Wrap = Callable[[NDArray[Any]], Any]

_PLACES_AHEAD = 64  # tokens
_CACHE_LINE_BYTES = 64


class Cache(Protocol):
    """A sequence that a session extends. T tokens, V vocabulary; `start` tokens precede."""

    def extend(self, token_ids: Integers, start: int) -> Logits:
        """Add tokens [1, T]; return float32 [T, V], or [1, V] from a graph that keeps the last position."""

    def step(self, token_id: int, start: int) -> Logits:
        """Add one token; return float32 [V], valid until the next call."""


def make_cache(library: Any, session: Any, graph: Graph, *, context_tokens: int, in_place: bool) -> Cache:
    """Return an empty cache for sequences of at most `context_tokens`."""
    wrap = library.OrtValue.ortvalue_from_numpy  # no copy: the value lies on the array
    feeds = Feeds(graph, context_tokens=context_tokens)
    if in_place:
        return SharedCache(session, graph, feeds, wrap, context_tokens=context_tokens)
    return GrowingCache(session, graph, feeds, wrap)


class Feeds:
    """Ids, mask and positions as the graph wants them. The last two are slices of arrays that are made once."""

    def __init__(self, graph: Graph, *, context_tokens: int) -> None:
        import numpy as np

        self._types = graph.integers
        self._mask = self._positions = None
        if MASK in graph.integers:
            self._mask = np.ones((1, context_tokens), graph.integers[MASK])
        if POSITIONS in graph.integers:
            self._positions = np.arange(context_tokens, dtype=graph.integers[POSITIONS])[None]

    def ids(self, token_ids: Integers) -> Integers:
        """Return ids [1, T] in the graph's type."""
        return token_ids.astype(self._types[IDS], copy=False)

    def places(self, start: int, stop: int) -> dict[str, Integers]:
        """Return mask and positions of the tokens from `start` to `stop`, by input name."""
        places = {}
        if self._mask is not None:
            places[MASK] = self._mask[:, :stop]
        if self._positions is not None:
            places[POSITIONS] = self._positions[:, start:stop]
        return places


class _StepPlaces:
    """Mask and positions of single tokens, as values of onnxruntime, made some tokens ahead.

    Made at each token they cost 28 microseconds: nothing of Python's is in the caches behind a run of the model. A
    block of them costs 2 microseconds a token, and binding one 10.
    """

    def __init__(self, feeds: Feeds, wrap: Wrap, *, context_tokens: int) -> None:
        self._feeds, self._wrap = feeds, wrap
        self._context_tokens = context_tokens
        self._made: dict[int, list[tuple[str, Any]]] = {}

    def at(self, start: int) -> list[tuple[str, Any]]:
        """Return inputs and values of the token behind `start` others."""
        if (found := self._made.get(start)) is None:
            self._made = {
                place: [
                    (name, self._wrap(array)) for name, array in self._feeds.places(place, place + 1).items()
                ]
                for place in range(start, min(start + _PLACES_AHEAD, self._context_tokens))
            }
            found = self._made[start]
        return found


class SharedCache:
    """Buffers for the whole context, bound once as past and as present. Implements `Cache`."""

    def __init__(self, session: Any, graph: Graph, feeds: Feeds, wrap: Wrap, *, context_tokens: int) -> None:
        import numpy as np

        self._session = session
        self._feeds = feeds
        self.buffers = {
            entry.past: wrap(
                _aligned_zeros((1, entry.heads, context_tokens, entry.head_size), graph.cache_type)
            )
            for entry in graph.cache
        }
        self._many, self._one = session.io_binding(), session.io_binding()
        self._many.bind_output(LOGITS)
        for binding in (self._many, self._one):
            for entry in graph.cache:
                binding.bind_ortvalue_input(entry.past, self.buffers[entry.past])
                binding.bind_ortvalue_output(entry.present, self.buffers[entry.past])
        # One token's id and logits also keep their place, so that a step binds the mask and nothing else.
        self._id = feeds.ids(np.zeros((1, 1), np.int64))
        self._one.bind_ortvalue_input(IDS, wrap(self._id))
        row = _aligned_zeros((1, 1, graph.vocab_size), graph.logits_type)
        self._one.bind_ortvalue_output(LOGITS, wrap(row))
        self._logits = row[0, 0]
        self._places = _StepPlaces(feeds, wrap, context_tokens=context_tokens)

    def extend(self, token_ids: Integers, start: int) -> Logits:
        """Add tokens [1, T]; return float32 [T, V], or [1, V] from a graph that keeps the last position."""
        binding = self._many
        binding.bind_cpu_input(IDS, self._feeds.ids(token_ids))
        for name, array in self._feeds.places(start, start + token_ids.shape[1]).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(LOGITS)  # of another size than the last ones
        self._session.run_with_iobinding(binding)
        return _float32(binding.get_outputs()[0].numpy()[0])

    def step(self, token_id: int, start: int) -> Logits:
        """Add one token; return float32 [V], valid until the next call."""
        self._id[0, 0] = token_id
        for name, value in self._places.at(start):
            self._one.bind_ortvalue_input(name, value)
        self._session.run_with_iobinding(self._one)
        return _float32(self._logits)


class GrowingCache:
    """Values that onnxruntime makes at each step and takes back at the next. Implements `Cache`."""

    def __init__(self, session: Any, graph: Graph, feeds: Feeds, wrap: Wrap) -> None:
        import numpy as np

        self._session = session
        self._feeds = feeds
        self._wrap = wrap
        self._names = [LOGITS, *(entry.present for entry in graph.cache)]
        self._past_names = [entry.past for entry in graph.cache]
        self._empty: Mapping[str, Any] = {
            entry.past: wrap(np.zeros((1, entry.heads, 0, entry.head_size), graph.cache_type))
            for entry in graph.cache
        }
        self._fed: dict[str, Any] = {}

    def extend(self, token_ids: Integers, start: int) -> Logits:
        """Add tokens [1, T]; return float32 [T, V], or [1, V] from a graph that keeps the last position."""
        fed = self._fed
        if start == 0:
            fed.update(self._empty)
        fed[IDS] = self._wrap(self._feeds.ids(token_ids))
        for name, array in self._feeds.places(start, start + token_ids.shape[1]).items():
            fed[name] = self._wrap(array)
        logits, *present = self._session.run_with_ort_values(self._names, fed)
        fed.update(zip(self._past_names, present, strict=True))
        return _float32(logits.numpy()[0])

    def step(self, token_id: int, start: int) -> Logits:
        """Add one token; return float32 [V], valid until the next call."""
        import numpy as np

        last: Logits = self.extend(np.array([[token_id]]), start)[-1]
        return last


def _aligned_zeros(shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """Return zeros that begin at a cache line, as onnxruntime's own buffers do.

    numpy's large arrays begin 16 bytes behind one, so that every vector of 64 bytes lies in two.
    """
    import numpy as np

    size = math.prod(shape) * np.dtype(kind).itemsize
    memory = np.zeros(size + _CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return memory[start : start + size].view(kind).reshape(shape)


def _float32(logits: NDArray[Any]) -> Logits:
    import numpy as np

    converted: Logits = logits if logits.dtype == np.float32 else logits.astype(np.float32)
    return converted
