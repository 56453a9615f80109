from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime import reference, torch_engine
from ammd.runtime.divergence import load_hidden_states
from ammd.runtime.heldout import load_heldout
from ammd.runtime.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tiny_heldout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    reference.build(request(tiny_checkpoint, tiny_heldout, folder))
    return folder


def request(checkpoint: Path, heldout: Path, folder: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "heldout": str(heldout),
        "folder": str(folder),
        "texts": 2,
        "greedy_prompts": 3,
        "greedy_tokens": 8,
        "threads": 1,
    }


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / reference.JSON_NAME).read_text())
    return found


def test_hidden_states_give_the_logits_of_the_responses(
    folder: Path, tiny_checkpoint: Path, tiny_heldout: Path
) -> None:
    rows = load_heldout(tiny_heldout, limit=2)
    with TorchEngine(tiny_checkpoint, threads=1, context_tokens=128) as engine:
        expected = [
            logits
            for row in rows
            for logits in engine.logits(row.token_ids[:-1], start=len(row.prompt_ids) - 1)
        ]
    states = load_hidden_states(folder / reference.TENSORS_NAME)
    count = sum(len(row.response_ids) for row in rows)
    assert len(states.hidden) == count
    # the same float32 numbers, summed in another order
    np.testing.assert_allclose(states.logits(0, count), np.concatenate(expected), atol=1e-4)


def test_probes_hold_special_tokens_and_ids(document: dict[str, Any]) -> None:
    probes = document["probes"]
    assert len(probes) == len(reference.PROBE_TEXTS) + 1
    assert "<|im_end|>" in probes[-1]["text"]
    assert 2 in probes[-1]["ids"]
    assert document["end_token_ids"] == [2]
    assert document["bos_token_id"] == 1


def test_every_chat_is_rendered(document: dict[str, Any]) -> None:
    assert [chat["name"] for chat in document["chats"]] == list(reference.PROBE_CHATS)
    assert document["chats"][3]["text"].startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi")


def test_greedy_text_is_the_likeliest_token_at_each_step(document: dict[str, Any]) -> None:
    for row in document["greedy"]:
        assert row["ids"] == [best[0] for best in row["best_ids"]]
        assert all(logits == sorted(logits, reverse=True) for logits in row["best_logits"])
        assert all(len(best) == reference.BEST_LOGITS for best in row["best_ids"])


def test_model_that_scales_its_logits_is_refused(
    tiny_checkpoint: Path, tiny_heldout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch_engine.load_model(tiny_checkpoint)
    forward = model.forward

    def scaled(**arguments: Any) -> Any:
        output = forward(**arguments)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(EngineError, match="changes its logits after the unembedding"):
        reference.save_hidden_states(model, load_heldout(tiny_heldout, limit=1), path=tmp_path / "x")


def test_chat_that_the_template_refuses_is_left_out(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = torch_engine.load_tokenizer(tiny_checkpoint)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}x"
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    names = [chat["name"] for chat in reference._probe_chats(tokenizer)]
    assert names == ["one turn", "several turns"]
