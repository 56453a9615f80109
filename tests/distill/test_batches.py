"""Masks, states and order of batches."""

from __future__ import annotations

from itertools import islice

import torch

from ammd.distill.batches import build_batch, cut_batches, endless_order

PAIRS = [((5, 6, 7), (8, 9, 2)), ((5,), (4, 2)), ((5, 6), (3,))]


def test_response_mask_holds_the_end_token_and_nothing_of_the_prompt() -> None:
    batch = build_batch(PAIRS)
    assert batch.targets.tolist() == [8, 9, 2, 4, 2, 3]
    assert batch.token_ids[1].tolist() == [5, 4, 2, 0, 0, 0]
    assert batch.attention_mask.sum(1).tolist() == [6, 3, 3]
    assert batch.last_in_row.tolist() == [False, False, True, False, True, True]


def test_state_mask_is_one_to_the_left_of_the_response() -> None:
    batch = build_batch(PAIRS)
    assert batch.state_mask[0].tolist() == [False, False, True, True, True, False]
    assert batch.state_mask[1].tolist() == [True, True, False, False, False, False]
    assert int(batch.state_mask.sum()) == len(batch.targets)


def test_each_epoch_shows_every_index_once_and_batches_have_like_lengths() -> None:
    lengths = [length for length in range(1, 65) for _ in range(2)]
    batches = list(islice(endless_order(lengths, batch_size=8, seed=1), 32))
    for epoch in (batches[:16], batches[16:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(128))
    assert batches[:16] != batches[16:]
    assert max(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) <= 8


def test_order_is_a_function_of_the_seed() -> None:
    def first(seed: int) -> list[list[int]]:
        return list(islice(endless_order([3] * 40, batch_size=4, seed=seed), 12))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_fewer_rows_than_a_batch_still_make_one() -> None:
    assert sorted(next(endless_order([2, 1], batch_size=16, seed=0))) == [0, 1]


def test_rows_are_padded_right_with_zero_attention() -> None:
    batch = build_batch(PAIRS)
    assert torch.equal(batch.attention_mask.bool() & batch.response_mask, batch.response_mask)


def test_shared_tokens_stop_before_the_state_of_the_first_response() -> None:
    assert build_batch([((7, 8, 9), (1,)), ((7, 8, 9), (2,))]).shared_tokens == 2
    assert build_batch([((7, 8, 9, 4), (1,)), ((7, 5, 9, 4), (2,))]).shared_tokens == 1
    assert build_batch([((7,), (1,)), ((7, 8), (2,))]).shared_tokens == 0


def test_cut_batches_keep_every_row_in_order() -> None:
    assert list(cut_batches(iter([[1, 2, 3], [4, 5, 6]]), 2)) == [[1, 2], [3, 4], [5, 6]]
    assert list(cut_batches(iter([[1, 2], [3, 4]]), 4)) == [[1, 2, 3, 4]]
