"""How a model reads a batch of prompts and then token after token, for the loop in `batch_decoding`.

A decoder-only model has the prompts padded on the left, so that the last column is every row's next token; what all of
them begin with is run once. An encoder-decoder encodes the prompts once, padded on the right; its decoder starts all
rows from the same token and so has nothing to pad. A prompt that several rows have is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from .encoder_decoder import head_scale, is_encoder_decoder, start_token_id
from .kv_cache import build_cache, cache_argument, has_plain_cache, run_shared, shared_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenReader(Protocol):
    """A model with what it has read of B rows."""

    def read(self) -> torch.Tensor:
        """Read what is new; return each row's final hidden state, as the head takes it. [B, H]."""
        ...

    def append(self, tokens: torch.Tensor) -> None:
        """Let these be what each row reads next. int64 [B] on the model's device."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows, each as often as it is named. int64 on the model's device."""
        ...


def begin_reading(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> TokenReader:
    """Return a reader whose first `read` reads the prompts, with room for that many tokens more."""
    kind = TargetReader if is_encoder_decoder(model) else SequenceReader
    different = list(dict.fromkeys(map(tuple, prompts)))
    reader = kind(model, different, max_new_tokens=max_new_tokens)
    if len(different) == len(prompts):
        return reader
    place = {prompt: row for row, prompt in enumerate(different)}
    return _Repeated(reader, [place[tuple(prompt)] for prompt in prompts])


class _Repeated:
    """A reader whose rows are multiplied once the prompts are read. Implements `TokenReader`."""

    def __init__(self, reader: TokenReader, rows: Sequence[int]) -> None:
        """Take the place of each row's prompt among those that `reader` reads."""
        self._reader = reader
        self._rows: Sequence[int] | None = rows

    def read(self) -> torch.Tensor:
        """See `TokenReader`."""
        read = self._reader.read()
        if self._rows is None:
            return read
        rows = torch.tensor(self._rows, device=read.device)
        self._rows = None
        self._reader.keep(rows)
        return read[rows]

    def append(self, tokens: torch.Tensor) -> None:
        """See `TokenReader`."""
        self._reader.append(tokens)

    def keep(self, rows: torch.Tensor) -> None:
        """See `TokenReader`."""
        self._reader.keep(rows)


class SequenceReader:
    """A decoder-only model. Implements `TokenReader`."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> None:
        """Take the prompts' ids, none empty."""
        shared = shared_tokens(prompts) if len(prompts) > 1 and has_plain_cache(model) else 0
        width = max(map(len, prompts)) - shared
        token_ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = width - len(prompt) + shared
            token_ids[row, start:] = torch.tensor(prompt[shared:])
            mask[row, start:] = 1
        position = (mask.cumsum(-1) - 1 + shared).clamp_(min=0)
        mask = torch.nn.functional.pad(mask, (shared, 0), value=1)
        device = model.get_output_embeddings().weight.device
        self._token_ids, self._mask, self._position = (
            token_ids.to(device),
            mask.to(device),
            position.to(device),
        )
        self._model = model
        self._cache = build_cache(model, capacity_tokens=mask.shape[1] + max_new_tokens)
        self._cache_name = cache_argument(model)
        if shared:
            first = torch.tensor([prompts[0][:shared]], device=device)
            run_shared(model, first, rows=len(prompts), cache=self._cache)

    def read(self) -> torch.Tensor:
        """See `TokenReader`."""
        read: torch.Tensor = self._model.get_decoder()(
            input_ids=self._token_ids,
            attention_mask=self._mask,
            position_ids=self._position,
            use_cache=True,
            **{self._cache_name: self._cache},
        ).last_hidden_state[:, -1]
        return read

    def append(self, tokens: torch.Tensor) -> None:
        """See `TokenReader`."""
        self._token_ids = tokens.unsqueeze(1)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._position = self._position[:, -1:] + 1

    def keep(self, rows: torch.Tensor) -> None:
        """See `TokenReader`."""
        self._cache.batch_select_indices(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]


class TargetReader:
    """An encoder-decoder. Implements `TokenReader`."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> None:
        """Encode the prompts, none empty."""
        device = model.get_output_embeddings().weight.device
        width = max(map(len, prompts))
        source = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            source[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = 1
        self._mask = mask.to(device)
        self._encoded: torch.Tensor = model.get_encoder()(
            input_ids=source.to(device), attention_mask=self._mask
        ).last_hidden_state
        self._token_ids = torch.full((len(prompts), 1), start_token_id(model), device=device)
        self._model, self._scale = model, head_scale(model)
        self._cache = build_cache(model, capacity_tokens=max_new_tokens)
        self._cache_name = cache_argument(model)

    def read(self) -> torch.Tensor:
        """See `TokenReader`."""
        read: torch.Tensor = self._model.get_decoder()(
            input_ids=self._token_ids,
            encoder_hidden_states=self._encoded,
            encoder_attention_mask=self._mask,
            use_cache=True,
            **{self._cache_name: self._cache},
        ).last_hidden_state[:, -1]
        return read * self._scale

    def append(self, tokens: torch.Tensor) -> None:
        """See `TokenReader`."""
        self._token_ids = tokens.unsqueeze(1)

    def keep(self, rows: torch.Tensor) -> None:
        """See `TokenReader`."""
        self._cache.batch_select_indices(rows)
        self._encoded, self._mask = self._encoded[rows], self._mask[rows]
