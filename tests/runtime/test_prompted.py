from __future__ import annotations

from pathlib import Path

import pytest

from ammd.runtime.prompted import answer_chats
from ammd.runtime.torch_engine import load_model, load_tokenizer

CHATS = [[{"role": "user", "content": text}] for text in ("the thing", "count to 10", "Hello there")]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> list[list[int]]:
    """What transformers' own greedy search says."""
    import torch

    model, tokenizer = load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    found = []
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        found.append(said[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("model", ["tiny_checkpoint", "tiny_gguf", "tiny_onnx"])
def test_every_engine_gives_the_likeliest_answer(
    model: str, expected: list[list[int]], request: pytest.FixtureRequest
) -> None:
    asked = {"path": str(request.getfixturevalue(model)), "chats": CHATS, "max_tokens": 6, "threads": 1}
    answers = answer_chats(asked)["answers"]
    assert [one["ids"] for one in answers] == expected
    assert [one["ended"] for one in answers] == [ids[-1] == 2 for ids in expected]
