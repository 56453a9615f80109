"""A language model as a policy: the hidden states that predict response tokens, and the head that reads them.

Loss code never asks a model for logits of a whole batch; it asks for the final hidden states at the states that
count and projects them chunk by chunk. That is only right where logits are exactly `head @ hidden`, which
`Policy` checks on the model itself.

Tokens that all rows begin with (a system prompt, say) go through the network once: their keys and values serve every
row, and the rows' gradients meet in them. For short chats that is a fifth of the work.

An encoder-decoder reads the same batches: prompts go through its encoder, responses, shifted by its start token,
through its decoder. Where it scales hidden states before the head (T5 1.0), so does `Policy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ammd.encoder_decoder import is_encoder_decoder, start_token_id, target_states
from ammd.errors import DistillError
from ammd.kv_cache import has_plain_cache, run_shared

from .checkpoint import copy_in_dtype
from .shards import divide, fill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .batches import Batch
    from .fleet import Fleet


class Policy(torch.nn.Module):
    """Wraps a language model. Calling it returns hidden states [N, H] at the batch's N response states."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take `model`.

        Raises:
            DistillError: Its logits are not a plain product of head and final hidden state.
        """
        super().__init__()
        self.model = model
        self._can_share = has_plain_cache(model)
        self._plain: tuple[PreTrainedModel, ...] = ()  # in a tuple: its parameters are not this module's
        _check_plain_head(model)

    def checkpoint_activations(self) -> None:
        """From now on, compute each layer's activations again in the backward pass instead of keeping them."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        names = (
            "activation_checkpointing_enable",
            "gradient_checkpointing_enable",
        )  # since, and before, 5.24
        enable = next(getattr(self.model, name) for name in names if hasattr(self.model, name))
        enable({"use_reentrant": False})
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # transformers asks the layer alone whether it trains; what lies in it (dropout) does not.
                module.training = True
        self._can_share = (
            False  # a layer that runs twice would write its keys and values into the cache twice
        )

    def divide(self, fleet: Fleet, *, dtype: torch.dtype) -> None:
        """From now on, hold only this process's part of each parameter; a copy in `dtype` is kept to sample from."""
        self._plain = (copy_in_dtype(self.model, dtype),)
        self._can_share = False  # one forward pass, one backward pass
        divide(self, self.model, fleet=fleet, device=self.device)

    @property
    def is_divided(self) -> bool:
        """Whether each process holds a part."""
        return bool(self._plain)

    def copy_in_dtype(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return a plain copy; if divided, all processes have to ask, and it is good until the next time."""
        if not self.is_divided:
            return copy_in_dtype(self.model, dtype)
        (kept,) = self._plain
        plain = kept if kept.dtype == dtype else copy_in_dtype(kept, dtype)
        fill(plain, self.model)
        return plain

    @property
    def device(self) -> torch.device:
        """Where the model is, and its batches have to be."""
        return self.head.device

    @property
    def head(self) -> torch.Tensor:
        """The unembedding. [V, H]."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the final hidden state at each state that predicts a response token. [N, H]."""
        if is_encoder_decoder(self.model):
            source_ids, source_mask = batch.sources
            target_ids, predicts = batch.decoder_inputs(start_token_id(self.model))
            return target_states(
                self.model, source_ids=source_ids, source_mask=source_mask, target_ids=target_ids
            )[predicts]
        shared = batch.shared_tokens if self._can_share and len(batch.token_ids) > 1 else 0
        past = (
            run_shared(self.model, batch.token_ids[:1, :shared], rows=len(batch.token_ids)) if shared else {}
        )
        output = self.model.get_decoder()(
            input_ids=batch.token_ids[:, shared:],
            attention_mask=batch.attention_mask,
            use_cache=bool(shared),
            **past,
        )
        hiddens: torch.Tensor = output.last_hidden_state[batch.state_mask[:, shared:]]
        return hiddens


@torch.inference_mode()
def _check_plain_head(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings().weight
    token_ids = torch.arange(2, device=head.device).unsqueeze(0)
    if is_encoder_decoder(model):
        logits = model(input_ids=token_ids, decoder_input_ids=token_ids, use_cache=False).logits
        mask = torch.ones_like(token_ids)
        hiddens = target_states(model, source_ids=token_ids, source_mask=mask, target_ids=token_ids)
    else:
        logits = model(input_ids=token_ids, use_cache=False).logits
        hiddens = model.get_decoder()(input_ids=token_ids, use_cache=False).last_hidden_state
    expected = (hiddens @ head.T).float()
    # Same product twice: only another order of summation may differ.
    if not torch.allclose(logits.float(), expected, rtol=1e-2, atol=1e-2):
        raise DistillError(
            f"the logits of `{type(model).__name__}` are scaled, capped or biased after the head",
            hint="this version trains models whose logits are the plain product of head and hidden state",
        )
