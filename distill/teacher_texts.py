"""What the teacher writes: responses to training prompts with its own hidden states, and held-out answers.

Training responses are sampled in the dtype that this machine multiplies fastest. Held-out answers are what others
are judged by, so they are exact: in bfloat16 the likeliest of two close tokens is a matter of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ammd.conversations import Conversation, encode_response
from ammd.progress import progress

from .batches import TokenPair, build_batch
from .checkpoint import end_token_ids
from .policy import Policy
from .rollout import Sampling, sample_responses
from .settings import PrepareSettings
from .teacher_states import TeacherStatesWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_responses(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    prompt_ids: Sequence[tuple[int, ...]],
    unanswered: Sequence[int],
    *,
    states: TeacherStatesWriter,
    settings: PrepareSettings,
) -> list[TokenPair]:
    """Return prompt and response of each conversation, and keep the teacher's states at the response.

    Args:
        policy: The teacher in the dtype to sample in.
        tokenizer: Its tokenizer.
        conversations: What is asked.
        prompt_ids: The same in tokens.
        unanswered: Places of those that the teacher answers; the others keep the file's response.
        states: Takes the states.
        settings: Length, temperature, rows a batch, seed.
    """
    sampled = _answer(
        policy.model,
        tokenizer,
        [prompt_ids[index] for index in unanswered],
        settings=settings,
        temperature=settings.temperature,
        label="teacher writes",
        on_states=lambda place, rows: states.append(unanswered[place], rows),
    )
    responses: dict[int, Sequence[int]] = dict(zip(unanswered, sampled, strict=True))
    given = [index for index in range(len(conversations)) if index not in responses]
    for index in given:
        text = conversations[index].response or ""
        responses[index] = encode_response(tokenizer, text, max_tokens=settings.response_tokens)
    pairs: list[TokenPair] = [(ids, responses[index]) for index, ids in enumerate(prompt_ids)]
    keep_states(policy, states, given, pairs, batch_size=settings.batch_size)
    return pairs


@torch.inference_mode()
def keep_states(
    policy: Policy,
    states: TeacherStatesWriter,
    indices: Sequence[int],
    pairs: Sequence[TokenPair],
    *,
    batch_size: int,
) -> None:
    """Append the teacher's states at responses, those of `pairs` at `indices`, that it did not write itself."""
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        batch = [pairs[index] for index in chosen]
        rows = policy(build_batch(batch).to(policy.device)).split([len(response) for _, response in batch])
        for index, piece in zip(chosen, rows, strict=True):
            states.append(index, piece)


def answer_greedily(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[tuple[int, ...]],
    *,
    settings: PrepareSettings,
) -> list[list[int]]:
    """Return the float32 teacher's greedy answer to each prompt."""
    return _answer(
        teacher,
        tokenizer,
        prompt_ids,
        settings=settings,
        temperature=0.0,
        label="teacher answers held-out prompts",
    )


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[tuple[int, ...]],
    *,
    settings: PrepareSettings,
    temperature: float,
    label: str,
    on_states: Callable[[int, torch.Tensor], None] | None = None,
) -> list[list[int]]:
    sampling = Sampling(
        max_new_tokens=settings.response_tokens,
        temperature=temperature,
        end_token_ids=end_token_ids(model, tokenizer),
        batch_size=settings.batch_size,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    with progress(label, len(prompt_ids)) as report:
        return sample_responses(
            model,
            prompt_ids,
            sampling=sampling,
            randomness=generator,
            on_tokens=lambda done, tokens: report(done, f"{tokens} tokens"),
            on_states=on_states,
        )
