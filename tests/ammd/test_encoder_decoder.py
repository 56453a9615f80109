"""Encoder-decoders as files and as readers of tokens, against transformers' own passes and generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from ammd.batch_decoding import decode_batch, draw, draw_mixed
from ammd.conversations import render_prompt
from ammd.encoder_decoder import head_scale, load_language_model, start_token_id, target_states
from ammd.errors import DataError

PROMPTS = [[20, 30, 40, 1], [50, 1], [60, 70, 33, 34, 35, 1], [33, 34, 1]]
NEW_TOKENS = 12


@pytest.fixture(params=["tiny_t5", "tiny_flan_t5"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Both forms of a head in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return load_language_model(folder, dtype=torch.float32)


def one_pass(model: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return transformers' own logits behind the start token and each token of `response`. [T + 1, V]."""
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([prompt]),
            decoder_input_ids=torch.tensor([[model.config.decoder_start_token_id, *response]]),
        )
    return output.logits[0]


def responses_of(model: PreTrainedModel, *, ends: tuple[int, ...] = (1,), **more: Any) -> list[list[int]]:
    choose = more.pop("choose", lambda logits, _rows: logits.argmax(-1))
    found, _ = decode_batch(
        model, PROMPTS, max_new_tokens=NEW_TOKENS, end_token_ids=ends, choose=choose, **more
    )
    return found


def test_both_forms_of_a_head_are_told_apart_and_kept(
    tiny_t5: Path, tiny_flan_t5: Path, tmp_path: Path
) -> None:
    for folder, tied in ((tiny_t5, True), (tiny_flan_t5, False)):
        model = load_language_model(folder, dtype=torch.float32)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
        assert head_scale(model) == (32**-0.5 if tied else 1)
        assert start_token_id(model) == 0
        before = one_pass(model, PROMPTS[0], [9, 10])
        model.save_pretrained(tmp_path / str(tied))
        config = json.loads((tmp_path / str(tied) / "config.json").read_text())
        # What transformers 4 and converters go by; transformers 5 takes it for true where it is not there.
        assert config.get("tie_word_embeddings", True) is tied
        again = load_language_model(tmp_path / str(tied), dtype=torch.float32)
        assert torch.equal(one_pass(again, PROMPTS[0], [9, 10]), before)


def test_a_file_saved_by_transformers_5_keeps_the_head_of_its_own(tiny_flan_t5: Path, tmp_path: Path) -> None:
    """It writes `tie_word_embeddings = true` beside both matrices; older versions would tie and scale."""
    folder = tmp_path / "resaved"
    folder.mkdir()
    for path in tiny_flan_t5.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    (folder / "config.json").write_text(json.dumps(config))
    expected = load_language_model(tiny_flan_t5, dtype=torch.float32)
    found = load_language_model(folder, dtype=torch.float32)
    assert torch.equal(one_pass(found, PROMPTS[0], [9]), one_pass(expected, PROMPTS[0], [9]))


def test_a_head_that_only_equals_the_embedding_is_one_of_its_own(
    build_t5: Callable[..., Path], tmp_path: Path
) -> None:
    model = load_language_model(build_t5(tmp_path / "t5", tied=False), dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path / "equal")
    found = load_language_model(tmp_path / "equal", dtype=torch.float32)
    assert found.get_output_embeddings().weight is not found.get_input_embeddings().weight
    assert head_scale(found) == 1


def test_transformers_own_loader_agrees(folder: Path, model: PreTrainedModel) -> None:
    own = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(one_pass(own, PROMPTS[2], [9, 10, 11]), one_pass(model, PROMPTS[2], [9, 10, 11]))


@pytest.mark.parametrize("tied", [True, False])
def test_umt5_and_mt5_are_read_alike(tmp_path: Path, tied: bool) -> None:
    shape = {"vocab_size": 80, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    kinds = [(UMT5Config, UMT5ForConditionalGeneration)] + [(MT5Config, MT5ForConditionalGeneration)] * (
        not tied
    )
    for config, kind in kinds:
        model = kind(config(**shape, decoder_start_token_id=0, tie_word_embeddings=tied)).eval()
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(torch.randn(80, 16))
        folder = tmp_path / config.__name__
        model.save_pretrained(folder)
        found = load_language_model(folder, dtype=torch.float32)
        expected = one_pass(model, [5, 6, 1], [7, 8])
        assert torch.equal(one_pass(found, [5, 6, 1], [7, 8]), expected)
        source, target = torch.tensor([[5, 6, 1]]), torch.tensor([[0, 7, 8]])
        with torch.inference_mode():
            states = target_states(
                found, source_ids=source, source_mask=torch.ones_like(source), target_ids=target
            )
            logits = states @ found.get_output_embeddings().weight.T
        torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)


def test_other_encoder_decoders_are_refused(tmp_path: Path) -> None:
    config = BartConfig(vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16)
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    with pytest.raises(ValueError, match="type `bart` are not known, t5, mt5, umt5 are"):
        load_language_model(tmp_path / "bart", dtype=torch.float32)


def test_states_of_padded_rows_give_transformers_logits(model: PreTrainedModel) -> None:
    responses = [[9, 10, 11], [12], [13, 14], [15, 16, 17, 18]]
    width, length = max(map(len, PROMPTS)), 1 + max(map(len, responses))
    source = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in PROMPTS])
    target = torch.tensor([[0, *response] + [0] * (length - 1 - len(response)) for response in responses])
    with torch.inference_mode():
        states = target_states(model, source_ids=source, source_mask=(source != 0).long(), target_ids=target)
        logits = states @ model.get_output_embeddings().weight.T
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        expected = one_pass(model, prompt, response)
        # Another order of summation in float32.
        torch.testing.assert_close(logits[row, : len(response) + 1], expected, rtol=1e-4, atol=1e-4)


def test_greedy_text_is_that_of_generate(model: PreTrainedModel) -> None:
    for prompt, response in zip(PROMPTS, responses_of(model), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        assert response == expected[0, 1:].tolist()


def test_sampled_text_is_that_of_a_plain_loop_on_the_same_numbers(model: PreTrainedModel) -> None:
    """Without a cache, one row at a time; ends that some rows meet early let the batch shrink."""
    numbers = torch.rand(len(PROMPTS), NEW_TOKENS, generator=torch.Generator().manual_seed(4))
    ends = (1, *range(40, 60))
    taken = 0

    def choose(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return draw(logits, temperature=0.8, uniform=numbers[rows, taken - 1])

    found = responses_of(model, ends=ends, choose=choose)
    for row, prompt in enumerate(PROMPTS):
        response: list[int] = []
        while len(response) < NEW_TOKENS and not (response and response[-1] in ends):
            logits = one_pass(model, prompt, response)[-1:]
            drawn = draw(logits, temperature=0.8, uniform=numbers[row, len(response)][None])
            response.append(int(drawn))
        assert found[row] == response
    assert len({len(response) for response in found}) > 1


def test_a_guide_reads_along(
    folder: Path, model: PreTrainedModel, build_t5: Callable[..., Path], tmp_path: Path
) -> None:
    guide = load_language_model(build_t5(tmp_path / "guide", seed=1, layers=2), dtype=torch.float32)
    numbers = torch.rand(len(PROMPTS), NEW_TOKENS, generator=torch.Generator().manual_seed(5))
    taken = 0

    def choose(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return draw_mixed(logits, guide_share=0.4, uniform=numbers[rows, taken - 1])[0]

    found = responses_of(model, choose=choose, guide=guide)
    for row, prompt in enumerate(PROMPTS):
        response: list[int] = []
        while len(response) < NEW_TOKENS and response[-1:] != [1]:
            both = [one_pass(one, prompt, response)[-1:] for one in (model, guide)]
            uniform = numbers[row, len(response)][None]
            response.append(int(draw_mixed(torch.stack(both), guide_share=0.4, uniform=uniform)[0]))
        assert found[row] == response


def test_kept_states_are_those_that_the_text_was_chosen_from(model: PreTrainedModel) -> None:
    found, states = decode_batch(
        model,
        PROMPTS,
        max_new_tokens=5,
        end_token_ids=(1,),
        choose=lambda logits, _rows: logits.argmax(-1),
        keep_states=True,
    )
    assert states is not None
    head = model.get_output_embeddings().weight
    for row, (prompt, response) in enumerate(zip(PROMPTS, found, strict=True)):
        expected = one_pass(model, prompt, response)[:-1]
        with torch.inference_mode():
            logits = states[row, : len(response)] @ head.T
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_source_is_the_message_and_the_end_token(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    user = {"role": "user", "content": "translate the"}
    ids = render_prompt(tokenizer, [user])
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "translate the"
    system = render_prompt(tokenizer, [{"role": "system", "content": "sum up"}, user])
    assert tokenizer.decode(system, skip_special_tokens=True).split() == ["sum", "up", "translate", "the"]


def test_a_history_is_refused_without_a_chat_template(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    turns = [{"role": role, "content": "an"} for role in ("user", "assistant", "user")]
    with pytest.raises(DataError, match="answers one message, not a conversation of 3"):
        render_prompt(tokenizer, turns)


def test_a_tokenizer_that_ends_no_text_still_needs_a_template(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        render_prompt(tokenizer, [{"role": "user", "content": "an"}])
