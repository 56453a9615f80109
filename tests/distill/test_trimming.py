"""A trimmed tokenizer and model against the full ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.distill.byte_level_bpe import read_byte_level_bpe
from ammd.distill.checkpoint import end_token_ids, load_model, load_tokenizer, save_checkpoint
from ammd.distill.trimming import (
    TrimmedTokenizer,
    named_token_ids,
    replace_checkpoint,
    trim_model,
    trim_tokenizer,
)
from ammd.distill.vocabulary import VocabularyPlan
from ammd.distill.vocabulary_settings import VocabularySettings
from ammd.errors import DistillError

TEXT = "the weather größer мягких 12 x\n"


def trim(tokenizer: Any, model: Any, text: str = TEXT) -> TrimmedTokenizer:
    plan = VocabularyPlan(VocabularySettings(), model=model, tokenizer=tokenizer)
    kept = plan.choose(Counter(tokenizer.encode(text, add_special_tokens=False)))
    return trim_tokenizer(tokenizer, plan.bpe, kept.ids)


@pytest.mark.parametrize("tied", [True, False])
def test_the_trimmed_teacher_is_the_full_one_given_that_a_kept_token_comes(
    tokenizer: Any, make_model: Callable, tied: bool
) -> None:
    full, model = make_model(tokenizer, tied=tied), make_model(tokenizer, tied=tied)
    trimmed = trim(tokenizer, model)
    trim_model(model, trimmed.new_ids)
    ids = tokenizer.encode(TEXT)
    with torch.inference_mode():
        logits = full(input_ids=torch.tensor([ids])).logits.double()[..., list(trimmed.new_ids)]
        found = model(input_ids=torch.tensor([trimmed.respell(ids, max_tokens=99)])).logits.double()
    # Only the summation order of float32 products may differ.
    torch.testing.assert_close(found.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-6)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    rows = len(trimmed.new_ids)
    assert found.shape[-1] == model.config.vocab_size == model.get_input_embeddings().num_embeddings == rows
    saved = full.num_parameters() - model.num_parameters()
    assert saved == (len(tokenizer) + 3 - rows) * 32 * (1 if tied else 2)


def test_everything_that_names_a_token_by_number_is_renumbered(
    any_tokenizer: Any, make_model: Callable
) -> None:
    model = make_model(any_tokenizer)
    trimmed = trim(any_tokenizer, model)
    new = trimmed.tokenizer.get_vocab()
    trim_model(model, trimmed.new_ids)
    assert sorted(new.values()) == list(range(len(new)))
    assert sorted(new, key=new.__getitem__) == [
        token
        for token in sorted(any_tokenizer.get_vocab(), key=any_tokenizer.get_vocab().__getitem__)
        if token in new
    ]
    assert model.generation_config.eos_token_id == [new["<|im_end|>"], new["<|endoftext|>"]]
    assert model.config.bos_token_id == model.generation_config.bos_token_id == new["<|endoftext|>"]
    assert model.config.pad_token_id == new["<|im_end|>"] == model.get_input_embeddings().padding_idx
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(trimmed.tokenizer, name) == getattr(any_tokenizer, name)
        assert getattr(trimmed.tokenizer, f"{name}_id") == new[getattr(any_tokenizer, name)]
    text = f"<|im_start|>{TEXT}<|im_end|>"
    for special in (True, False):  # with what the tokenizer adds by itself, and without
        found = trimmed.tokenizer.encode(text, add_special_tokens=special)
        expected = any_tokenizer.encode(text, add_special_tokens=special)
        assert found == list(trimmed.respell(expected, max_tokens=999))


def test_saved_and_loaded_again_is_the_same(
    any_tokenizer: Any, make_model: Callable, make_texts: Callable, tmp_path: Path
) -> None:
    model = make_model(any_tokenizer).to(torch.bfloat16)
    save_checkpoint(model, any_tokenizer, tmp_path / "model")
    (tmp_path / "model" / "vocab.json").write_text("{}")
    (tmp_path / "link").hardlink_to(tmp_path / "model" / "model.safetensors")
    linked = (tmp_path / "link").read_bytes()
    model = load_model(tmp_path / "model", dtype=torch.float32)
    full = load_tokenizer(tmp_path / "model")
    trimmed = trim(full, model)
    trim_model(model, trimmed.new_ids)
    replace_checkpoint(tmp_path / "model", model, trimmed.tokenizer)
    assert (tmp_path / "link").read_bytes() == linked  # the source's own file
    assert not (tmp_path / "model" / "vocab.json").exists()
    again, tokenizer = load_model(tmp_path / "model", dtype=torch.float32), load_tokenizer(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert end_token_ids(again, tokenizer) == end_token_ids(model, trimmed.tokenizer)
    assert len(end_token_ids(again, tokenizer)) == 2
    chat = [{"role": "user", "content": "Übrigens?"}]
    for text in (*make_texts(20, seed=9), full.apply_chat_template(chat, tokenize=False)):
        assert tokenizer.encode(text) == trimmed.tokenizer.encode(text)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == full.apply_chat_template(
        chat, tokenize=False
    )
    assert tokenizer.model_max_length == full.model_max_length
    assert read_byte_level_bpe(tokenizer).ids == trimmed.tokenizer.get_vocab()


def test_a_lost_token_is_spelled_in_its_own_bytes(tokenizer: Any, make_model: Callable) -> None:
    model = make_model(tokenizer)
    trimmed = trim(tokenizer, model, "e")
    spare = len(tokenizer) + 1  # a row of the head that no token has
    half = tokenizer.convert_tokens_to_ids("Ã")  # the first byte of ö: no text has it alone
    ids = [*tokenizer.encode("whatever wären"), spare, half]
    new = trimmed.respell(ids, max_tokens=99)
    joined = "".join(trimmed.tokenizer.convert_ids_to_tokens(list(new)))
    assert joined == "".join(tokenizer.convert_ids_to_tokens([*ids[:-2], half]))
    assert len(new) > len(ids)
    assert not trimmed.keeps(ids)
    assert trimmed.keeps(tokenizer.encode("e"))
    assert trimmed.respell(ids, max_tokens=3) == new[:3]
    assert trimmed.respell([spare], max_tokens=3) == (trimmed.tokenizer.eos_token_id,)
    assert trimmed.respelled_share([[half, half], [half, ids[-3]]]) == 0.25  # `ren` of wären


def test_names_that_cannot_be_renumbered_are_refused(tokenizer: Any, make_model: Callable) -> None:
    model = make_model(tokenizer)
    assert named_token_ids(model) == {0, 2}
    model.generation_config.suppress_tokens = [5]
    with pytest.raises(DistillError, match="the model's `suppress_tokens` names tokens by number"):
        named_token_ids(model)


def test_a_student_that_ends_in_a_token_of_its_own_is_refused(tokenizer: Any, make_model: Callable) -> None:
    model = make_model(tokenizer)
    trimmed = trim(tokenizer, model)
    model.generation_config.eos_token_id = len(tokenizer) + 1
    with pytest.raises(
        DistillError, match=f"the model's `eos_token_id` is `{len(tokenizer) + 1}`, which is no"
    ):
        trim_model(model, trimmed.new_ids)


def test_added_tokens_between_others_are_refused(tokenizer: Any, make_model: Callable) -> None:
    """The library numbers an added token that is not in the model's table after all others."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    document = json.loads(tokenizer.backend_tokenizer.to_str())
    del document["model"]["vocab"]["<|im_start|>"]
    odd = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)), eos_token="<|im_end|>"
    )
    with pytest.raises(DistillError, match="added tokens lie between others"):
        trim(odd, make_model(tokenizer))
