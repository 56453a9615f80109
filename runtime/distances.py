"""How far a model is from the teacher on given texts, one record a text.

Of a file the engine gives the logits; of a checkpoint torch gives the hidden states of many texts at once, from which
they are recomputed like the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .divergence import HiddenStates, Positions, compare_positions
from .engine import Engine

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .divergence import Floats

    Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]  # token ids of prompt and response

SURE_PROB = 0.5  # the teacher is sure where one token is likelier than all others together


def of_engine(engine: Engine, teacher: HiddenStates, pairs: Pairs) -> list[dict[str, Any]]:
    """Return, for each prompt and response, how far the engine is from the teacher on the response."""

    def logits() -> Iterator[Floats]:
        for prompt, response in pairs:
            yield from engine.logits([*prompt, *response][:-1], start=len(prompt) - 1)

    return _by_text(teacher, logits(), [response for _, response in pairs])


def of_states(
    states: HiddenStates, teacher: HiddenStates, responses: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Return the same of a checkpoint, from the states that predict the tokens of one response after the other."""
    return _by_text(teacher, states.chunks(), responses)


def save_states(kept: Sequence[Tensor], path: Path) -> None:
    """Save final hidden states, [T, H] for each text, one after the other in float32."""
    import torch
    from safetensors.torch import save_file

    save_file({"hidden": torch.cat([states.float() for states in kept]).contiguous()}, path)


def load_states(path: Path, *, unembedding: Floats) -> HiddenStates:
    """Read what `save_states` wrote."""
    from safetensors.numpy import load_file

    return HiddenStates(hidden=load_file(path)["hidden"], unembedding=unembedding)


def unembedding_of(model: PreTrainedModel) -> Floats:
    """Return the matrix [V, H] that turns a checkpoint's hidden states into logits."""
    matrix: Floats = model.get_output_embeddings().weight.detach().float().numpy()
    return matrix


def _by_text(
    teacher: HiddenStates, logits: Iterable[Floats], responses: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    found = compare_positions(teacher, logits, [token for response in responses for token in response])
    ends = list(accumulate(map(len, responses)))
    return [_text(found, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def _text(found: Positions, rows: slice) -> dict[str, Any]:
    """Return the means and counts over one text's positions."""
    agrees, sure = found.agrees[rows], found.reference_top_prob[rows] >= SURE_PROB
    return {
        "kl_nats": float(found.kl_nats[rows].mean()),
        "tv": float(found.tv[rows].mean()),
        "positions": len(agrees),
        "agreed": int(agrees.sum()),
        "sure": int(sure.sum()),
        "agreed_sure": int(agrees[sure].sum()),
        "agreed_unsure": int(agrees[~sure].sum()),
    }
