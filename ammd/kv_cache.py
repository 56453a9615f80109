"""A key-value cache that writes in place, for rollouts of known greatest length.

transformers' dynamic cache concatenates keys and values at each token, which copies the whole cache: at 128
rows that was almost half the time of a decoding step on the CPU. This one takes its room once. Models whose layers
need another kind of cache (sliding windows, state spaces) keep transformers' own. An encoder-decoder also keeps what
its layers read of the encoded prompt, computed once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from .encoder_decoder import is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer. [B, heads, capacity, D] buffers; `keys` and `values` are views of them."""

    def __init__(self, capacity_tokens: int) -> None:
        super().__init__()
        self._capacity_tokens = capacity_tokens
        self.is_initialized: bool = False
        self._key_buffer = self._value_buffer = torch.empty(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new states and return all so far. [B, heads, new, D] to [B, heads, all, D]."""
        start = self.get_seq_length()
        if not self.is_initialized:
            # The parent's own initialization takes other arguments in transformers 4 than in 5.
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            batch, heads, _, width = key_states.shape
            room = (batch, heads, self._capacity_tokens)
            self._key_buffer = key_states.new_empty(*room, width)
            self._value_buffer = value_states.new_empty(*room, value_states.shape[-1])
        end = start + key_states.shape[-2]
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self.keys = self._key_buffer[:, :, :end]
        self.values = self._value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Make `repeats` rows of each."""
        rows = torch.arange(len(self._key_buffer), device=self._key_buffer.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        end = self.get_seq_length()
        self._key_buffer = self._key_buffer[indices]
        self._value_buffer = self._value_buffer[indices]
        self.keys = self._key_buffer[:, :, :end]
        self.values = self._value_buffer[:, :, :end]


class _TargetCache(EncoderDecoderCache):  # type: ignore[misc]
    """An encoder-decoder's cache. transformers' own drops no rows of a part that is not its dynamic cache."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self.self_attention_cache.batch_select_indices(indices)
        self.cross_attention_cache.batch_select_indices(indices)


def build_cache(model: PreTrainedModel, *, capacity_tokens: int) -> Cache:
    """Return an empty cache for `model` with room for `capacity_tokens` a row, of the target if there is an encoder."""
    if is_encoder_decoder(model):
        layers = range(len(model.get_decoder().block))
        return _TargetCache(
            Cache(layers=[InPlaceLayer(capacity_tokens) for _ in layers]),
            Cache(layers=[DynamicLayer() for _ in layers]),
        )
    if has_plain_cache(model):
        return Cache(layers=[InPlaceLayer(capacity_tokens) for _ in DynamicCache(config=model.config).layers])
    return DynamicCache(config=model.config)


def has_plain_cache(model: PreTrainedModel) -> bool:
    """Tell whether every layer caches keys and values of all tokens, and nothing else."""
    if is_encoder_decoder(model):
        return False
    layers = getattr(DynamicCache(config=model.config), "layers", [])
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def run_shared(
    model: PreTrainedModel, token_ids: torch.Tensor, *, rows: int, cache: Cache | None = None
) -> dict[str, Any]:
    """Run tokens that all rows of a batch begin with.

    Args:
        model: One for which `has_plain_cache` holds.
        token_ids: The shared tokens. int64 [1, P].
        rows: Of the batch.
        cache: Empty, to run them into; absent, a new one through which gradients flow.

    Returns:
        The cache, repeated for every row, as an argument of the model's forward.
    """
    name = cache_argument(model)
    cache = DynamicCache(config=model.config) if cache is None else cache
    model.get_decoder()(input_ids=token_ids, use_cache=True, **{name: cache})
    cache.batch_repeat_interleave(rows)
    return {name: cache}


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name under which the model's forward takes its cache (renamed within transformers 5)."""
    parameters = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens are the same in all prompts, each one's last token left out."""
    shortest = min(map(len, prompts)) - 1
    columns = zip(*(prompt[:shortest] for prompt in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
