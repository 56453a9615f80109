"""Encoder-decoders (T5, Flan-T5) beside decoder-only models: load either kind, and what tells them apart.

An encoder-decoder reads the prompt as the source of its encoder and writes the response with its decoder, which starts
from a token of its own. So a state is a source and a prefix of the target, and everything that wants the state behind
each response token takes `target_states` instead of reading one sequence.

Its head comes in two forms. The first T5 has the embedding as its head and scales what goes into it by H ** -0.5; T5
1.1, Flan-T5 and mT5 have a head of their own, unscaled. `tie_word_embeddings` in config.json says which, and
transformers 5 sets it to true for all of them, in memory and in what it saves: such a file is then read by
transformers 4 and by converters as a tied, scaled model. Here the key keeps its meaning, and a head of its own stays
one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MODEL_TYPES = ("t5", "mt5", "umt5")
"""Encoder-decoders that are known. Others (BART, Marian) place a bias behind the head or count positions."""


def load_language_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load the language model of a checkpoint folder, of either kind, on the CPU and in evaluation mode.

    Raises:
        OSError, ValueError, KeyError: transformers cannot read it, or it is neither a causal language model nor a known
            encoder-decoder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.is_encoder_decoder:
        model = _load_encoder_decoder(folder, config, dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval()


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Tell whether the prompt goes through an encoder of its own."""
    return bool(model.config.is_encoder_decoder)


def head_scale(model: PreTrainedModel) -> float:
    """Return what the final hidden state is multiplied by before the head; 1 for decoder-only models."""
    config = model.config
    if is_encoder_decoder(model) and getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
        return float(config.d_model**-0.5)
    return 1.0


def stated_head_scale(document: Mapping[str, Any]) -> float:
    """Return the same, as a config.json has it."""
    if document.get("model_type") in MODEL_TYPES and has_tied_head(document):
        width = int(document["d_model"])
        return float(width**-0.5)
    return 1.0


def start_token_id(model: PreTrainedModel) -> int:
    """Return the token that an encoder-decoder's target starts from, which is not part of a response."""
    for config in (model.config, model.generation_config):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    return int(model.config.pad_token_id)


def target_states(
    model: PreTrainedModel,
    *,
    source_ids: torch.Tensor,
    source_mask: torch.Tensor,
    target_ids: torch.Tensor,
) -> torch.Tensor:
    """Return an encoder-decoder's final hidden states, as its head takes them: logits are `head @ state`.

    Args:
        model: The encoder-decoder.
        source_ids: Prompts, padded right. int64 [B, S].
        source_mask: 1 on the prompts' tokens. int64 [B, S].
        target_ids: What the decoder reads, the start token first, padded right. int64 [B, T].

    Returns:
        [B, T, H]: at place t, what predicts the token behind `target_ids[:, t]`.
    """
    encoded = model.get_encoder()(input_ids=source_ids, attention_mask=source_mask).last_hidden_state
    decoded: torch.Tensor = model.get_decoder()(
        input_ids=target_ids,
        encoder_hidden_states=encoded,
        encoder_attention_mask=source_mask,
        use_cache=False,
    ).last_hidden_state
    return decoded * head_scale(model)


def _load_encoder_decoder(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"encoder-decoders of type `{config.model_type}` are not known, {', '.join(MODEL_TYPES)} are"
        )
    is_tied = has_tied_head(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    is_forced = type(config)(tie_word_embeddings=False).tie_word_embeddings  # by transformers 5
    if not is_forced:
        config.tie_word_embeddings = is_tied
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True)
    # Only now: until the weights are there, it also says that both stacks share the embedding.
    model.config.tie_word_embeddings = is_tied
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if (
        not is_tied and head.weight is embedding.weight
    ):  # equal in value, as in a model that was never trained
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    return model


def has_tied_head(document: Mapping[str, Any]) -> bool:
    """Tell whether an encoder-decoder's config.json means the embedding to be the head, scaled."""
    if document["model_type"] == "mt5" or document.get("scale_decoder_outputs") is False:
        return False  # whatever transformers 5 has written into the key
    return document.get("tie_word_embeddings") is not False
