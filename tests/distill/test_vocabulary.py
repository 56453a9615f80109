"""Which tokens stay, and that counted text is cut as before, against the tokenizers library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.distill.trimming import TrimmedTokenizer, trim_tokenizer
from ammd.distill.vocabulary import KeptTokens, VocabularyPlan, count_texts
from ammd.distill.vocabulary_settings import VocabularySettings
from ammd.errors import DataError, DistillError, RecipeError
from ammd.pipeline.recipe import load_recipe


def plan_for(tokenizer: Any, model: Any, **settings: Any) -> VocabularyPlan:
    return VocabularyPlan(VocabularySettings(**settings), model=model, tokenizer=tokenizer)


def count(tokenizer: Any, texts: list[str]) -> Counter[int]:
    return Counter(number for text in texts for number in tokenizer.encode(text, add_special_tokens=False))


def trim(
    tokenizer: Any, model: Any, counted: list[str], **settings: Any
) -> tuple[KeptTokens, TrimmedTokenizer]:
    plan = plan_for(tokenizer, model, **settings)
    kept = plan.choose(count(tokenizer, counted))
    return kept, trim_tokenizer(tokenizer, plan.bpe, kept.ids)


def pieces(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


def test_counted_text_is_cut_as_before_and_any_other_comes_back_whole(
    any_tokenizer: Any, make_model: Callable, make_texts: Callable
) -> None:
    model = make_model(any_tokenizer)
    for seed in range(5):
        counted, others = make_texts(8, seed=seed), make_texts(40, seed=100 + seed)
        kept, trimmed = trim(any_tokenizer, model, counted)
        assert kept.respelled_tokens == 0
        assert len(trimmed.tokenizer) == len(kept.ids) < len(any_tokenizer)
        for text in counted:
            assert pieces(trimmed.tokenizer, text) == pieces(any_tokenizer, text)
        for text in others:
            full = any_tokenizer.decode(any_tokenizer.encode(text, add_special_tokens=False))
            assert trimmed.tokenizer.decode(trimmed.tokenizer.encode(text, add_special_tokens=False)) == full
        # Not for nothing: some of the other texts used tokens that are gone.
        assert any(pieces(trimmed.tokenizer, text) != pieces(any_tokenizer, text) for text in others)


def test_kept_are_special_tokens_bytes_used_ones_and_their_ancestors(
    tokenizer: Any, make_model: Callable
) -> None:
    used = max(tokenizer.get_vocab(), key=lambda token: (len(token), token))
    kept, trimmed = trim(tokenizer, make_model(tokenizer), [tokenizer.convert_tokens_to_string([used])])
    assert trimmed.tokenizer.encode(tokenizer.convert_tokens_to_string([used])) == [
        trimmed.tokenizer.get_vocab()[used]
    ]
    assert kept.kept_for["special"] == 3
    assert kept.kept_for["bytes"] == 256
    assert kept.kept_for["training"] == 1
    assert 1 <= kept.kept_for["ancestors"] < len(used)
    assert kept.kept_for["filling"] < 16
    assert len(kept.ids) % 16 == 0
    assert sum(kept.kept_for.values()) == len(kept.ids) == len(set(kept.ids))
    assert list(kept.ids) == sorted(kept.ids)


def test_a_token_that_the_configuration_names_stays(tokenizer: Any, make_model: Callable) -> None:
    model = make_model(tokenizer)
    named = len(tokenizer) - 1
    assert named not in trim(tokenizer, model, [])[0].ids
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, named]
    assert named in trim(tokenizer, model, [])[0].ids
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, len(tokenizer) + 1]
    with pytest.raises(
        DistillError, match=f"names token `{len(tokenizer) + 1}`, which its tokenizer does not"
    ):
        plan_for(tokenizer, model)


def test_words_of_a_language_stay_without_being_used(tokenizer: Any, make_model: Callable) -> None:
    model = make_model(tokenizer)
    texts = ["weather whatever", "größer schöner", "мягких булок"]
    cut = {
        code: [len(trim(tokenizer, model, [], languages=(code,))[1].tokenizer.encode(text)) for text in texts]
        for code in ("en", "de", "ru")
    }
    full = [len(tokenizer.encode(text)) for text in texts]
    assert cut["en"][0] == cut["de"][0] == full[0] < cut["ru"][0]
    assert cut["de"][1] == full[1] < cut["en"][1] <= cut["ru"][1]
    assert cut["ru"][2] == full[2] < cut["de"][2]
    kept, _ = trim(tokenizer, model, texts[:1], languages=("ru",))
    assert kept.kept_for["languages"] > 0 < kept.kept_for["training"]


def test_files_of_texts_count(tokenizer: Any, make_model: Callable, tmp_path: Path) -> None:
    plain, rows = tmp_path / "plain.txt", tmp_path / "rows.jsonl"
    plain.write_text("largest größer\n\n  schöner\r\nweiter", encoding="utf-8", newline="")
    rows.write_text(json.dumps({"prompt": "мягких", "response": "булок"}), encoding="utf-8")
    paths = (str(plain), str(rows))
    kept, trimmed = trim(tokenizer, make_model(tokenizer), ["the"], texts=paths)
    for text in (plain.read_bytes().decode(), "мягких", "булок"):
        assert pieces(trimmed.tokenizer, text) == pieces(tokenizer, text)
    assert kept.kept_for["texts"] > 0
    whole = count(tokenizer, [plain.read_bytes().decode()])
    assert count_texts(tokenizer, paths[:1]) == whole  # though it was read line by line
    assert count_texts(tokenizer, paths[1:])[tokenizer.eos_token_id] == 2  # of the template, of the response


def test_missing_text_file_is_refused(tokenizer: Any, make_model: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read `.*none\.txt`"):
        plan_for(tokenizer, make_model(tokenizer), texts=(str(tmp_path / "none.txt"),))


def test_max_tokens_keeps_the_most_frequent(
    any_tokenizer: Any, make_model: Callable, make_texts: Callable
) -> None:
    model, texts = make_model(any_tokenizer), make_texts(60, seed=3)
    everything, _ = trim(any_tokenizer, model, texts)
    limit = len(everything.ids) - 40
    kept, trimmed = trim(any_tokenizer, model, texts, max_tokens=limit)
    assert limit - 1 <= len(kept.ids) <= limit
    counts = count(any_tokenizer, texts)
    lost = {number: counts[number] for number in counts if number not in kept.ids}
    assert kept.respelled_tokens == sum(lost.values()) > 0
    assert kept.counted_tokens == counts.total()
    # No lost token was used more often than the rarest of those that are kept for being used.
    base = len(trim(any_tokenizer, model, [])[0].ids)
    assert max(lost.values()) <= sorted(counts.values(), reverse=True)[limit // 2 - base // 2]
    for text in texts:
        spelled = trimmed.tokenizer.decode(trimmed.tokenizer.encode(text, add_special_tokens=False))
        assert spelled == any_tokenizer.decode(any_tokenizer.encode(text, add_special_tokens=False))


def test_too_few_tokens_are_refused(tokenizer: Any, make_model: Callable) -> None:
    model = make_model(tokenizer)
    with pytest.raises(
        DistillError, match=r"`258` is too few: special tokens and single bytes alone are 259"
    ):
        plan_for(tokenizer, model, max_tokens=258)
    kept, _ = trim(tokenizer, model, ["the weather"], max_tokens=259)
    assert len(kept.ids) == 259
    assert kept.respelled_tokens > 0


def test_unknown_language_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"no alphabet for `xx`, known are ar, bg, cs, .*, vi, zh"):
        load_recipe(overrides=["prepare.vocabulary.languages=['en', 'xx']"])
