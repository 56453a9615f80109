from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.runtime import parity, reference
from ammd.runtime.model_file import ModelFile


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tiny_heldout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    reference.build(
        {
            "checkpoint": str(tiny_checkpoint),
            "heldout": str(tiny_heldout),
            "folder": str(folder),
            "texts": 4,
            "greedy_prompts": 4,
            "greedy_tokens": 12,
            "threads": 1,
        }
    )
    (folder / "checkpoint.json").write_text(json.dumps(str(tiny_checkpoint)))
    return folder


def measure(path: Path, folder: Path) -> dict[str, Any]:
    checkpoint = json.loads((folder / "checkpoint.json").read_text())
    request = {"path": str(path), "reference": str(folder), "checkpoint": checkpoint, "threads": 1}
    return parity.measure(request)


def test_faithful_gguf_has_no_faults(tiny_gguf: Path, folder: Path) -> None:
    record = measure(tiny_gguf, folder)
    assert record["faults"] == []
    assert record["kl_nats"] < 1e-6  # float32 weights, F16 cache
    assert record["top1_agreement"] == 1
    assert record["greedy_equal"] == record["greedy_prompts"] == 4
    assert record["positions"] > 4


def test_faithful_onnx_differs_only_in_unicode_digits(tiny_onnx: Path, folder: Path) -> None:
    """genai splits only ASCII digits one by one; the exporter mends that, the builder alone does not."""
    record = measure(tiny_onnx, folder)
    assert all(fault.startswith("token ids differ") for fault in record["faults"])


def test_faithful_standard_onnx_has_no_faults(tiny_standard_onnx: Path, folder: Path) -> None:
    record = measure(tiny_standard_onnx, folder)
    assert record["faults"] == record["notes"] == []
    assert record["kl_nats"] < 1e-8  # float32 in another order
    assert record["greedy_equal"] == record["greedy_prompts"] == 4


def test_noisy_file_is_measured_and_its_divergences_judged(
    tiny_checkpoint: Path, make_gguf: Callable, tmp_path: Path, folder: Path
) -> None:
    record = measure(make_gguf(tiny_checkpoint, tmp_path / "noisy.gguf", noise=0.02), folder)
    assert record["faults"] == []
    assert record["kl_nats"] > 1e-4
    assert record["max_logit_error"] > 0.01
    assert len(record["divergences"]) == 4 - record["greedy_equal"]


def test_wrong_end_token_is_a_fault(
    tiny_checkpoint: Path, make_gguf: Callable, tmp_path: Path, folder: Path
) -> None:
    """llama.cpp knows `<|im_end|>` by name, so the file must be asked about a token it cannot know."""
    record = measure(make_gguf(tiny_checkpoint, tmp_path / "end.gguf"), folder)
    assert record["faults"] == []
    assert parity.check_end_tokens(Ends({0, 2}), [2, 7]) == [
        "token 7 ends a response of the checkpoint but not of the file"
    ]
    assert parity.check_end_tokens(Ends({0, 2}), [2]) == []


def test_sizes_that_differ_are_faults() -> None:
    found = ModelFile(bytes=1, sha256="0", vocab_size=10, context_tokens=64, tied_head=True)
    assert parity.check_sizes(found, {"vocab_size": 10, "context_tokens": 64, "tied_head": True}) == []
    faults = parity.check_sizes(found, {"vocab_size": 12, "context_tokens": 32, "tied_head": False})
    assert faults == [
        "the vocabulary has 10 tokens, the checkpoint's 12",
        "the output shares its matrix with the embedding, unlike the checkpoint's",
        "the context has 64 tokens, the checkpoint's 32",
    ]
    twice = ModelFile(bytes=1, sha256="0", vocab_size=10, context_tokens=64, tied_head=False)
    tied = {"vocab_size": 10, "context_tokens": 64, "tied_head": True}
    assert parity.check_sizes(twice, tied) == []
    assert "stored twice" in parity.size_notes(twice, tied)[0]
    assert parity.size_notes(found, tied) == []
    unsaid = ModelFile(bytes=1, sha256="0", vocab_size=None, context_tokens=None, tied_head=None)
    assert parity.check_sizes(unsaid, {"vocab_size": 12, "context_tokens": 32, "tied_head": False}) == []


def test_token_fault_names_text_and_place(make_engine: Callable) -> None:
    engine = make_engine(zeros)
    probes = [{"text": "ab", "ids": [97, 98]}, {"text": "abc", "ids": [97, 5, 99]}]
    assert parity.check_token_ids(engine, probes) == [
        "token ids differ for 'abc': token 1 is 98 instead of 5"
    ]
    assert "2 tokens instead of 3" in parity.check_token_ids(engine, [{"text": "ab", "ids": [97, 98, 0]}])[0]


def test_text_that_is_only_not_composed_is_noted(make_engine: Callable) -> None:
    engine = make_engine(zeros)
    apart, together = "e\u0301", "\u00e9"
    probes = [{"text": apart, "ids": list(together.encode())}]
    assert parity.check_token_ids(engine, probes) == []
    assert "not composed (NFC)" in parity.composition_notes(engine, probes)[0]
    assert parity.check_token_ids(engine, [{"text": apart, "ids": [1]}]) != []
    assert parity.composition_notes(engine, [{"text": apart, "ids": list(apart.encode())}]) == []


def test_chat_faults_name_the_chat(make_engine: Callable) -> None:
    engine = make_engine(zeros)
    chat = {"name": "one turn", "messages": [{"role": "user", "content": "x"}]}
    good = {**chat, "text": "u:x|", "ids": list(b"u:x|")}
    assert parity.check_chats(engine, [good]) == []
    assert "`one turn` is rendered as 'u:x|'" in parity.check_chats(engine, [{**good, "text": "u:x"}])[0]
    assert "other token ids" in parity.check_chats(engine, [{**good, "ids": [1]}])[0]


def test_bos_faults(make_engine: Callable) -> None:
    engine = make_engine(zeros)
    engine.bos_token_id = 60  # `<`
    plain = {"text": "a", "ids_with_special": [97]}
    once = {"name": "c", "text": "<a", "ids": [60, 97]}
    good = {"bos_token_id": 60, "probes": [plain], "chats": [once]}
    assert parity.check_bos(engine, good) == []
    missing = {**good, "probes": [{"text": "a", "ids_with_special": [60, 97]}]}
    assert parity.check_bos(engine, missing) == ["plain text starts with 0 BOS tokens instead of 1"]
    doubled = {**good, "chats": [{"name": "c", "text": "<<a", "ids": [60, 60, 97]}]}
    assert parity.check_bos(engine, doubled) == ["the chat `c` starts with 2 BOS tokens"]
    assert "BOS token is 60, the checkpoint's 1" in parity.check_bos(engine, {**good, "bos_token_id": 1})[0]


@pytest.mark.parametrize(("error", "explained"), [(0.3, True), (0.2, False)])
def test_divergence_is_explained_by_a_larger_logit_error(
    make_engine: Callable, error: float, explained: bool
) -> None:
    def rule(sequence: list[int]) -> np.ndarray:
        logits = np.zeros(256, dtype=np.float32)
        logits[{1: 97, 2: 98}[len(sequence)]] = 1
        return logits

    greedy = [
        {
            "prompt_ids": [65],
            "ids": [97, 99],
            "best_ids": [[97, 98], [99, 98]],
            "best_logits": [[5.0, 1.0], [4.0, 3.75]],
        }
    ]
    record = parity.compare_greedy(make_engine(rule), greedy, max_logit_error=error)
    (place,) = record["divergences"]
    assert (place["prompt"], place["step"], place["expected"], place["found"]) == (0, 1, "c", "b")
    assert place["logit_gap"] == 0.25
    assert place["explained"] is explained
    assert record["greedy_equal"] == 0


def test_token_outside_the_best_is_at_least_as_far_as_the_last() -> None:
    assert parity._logit_gap([3, 4], [2.0, 1.0], 9) == 1.0


class Ends:
    """Only what `check_end_tokens` looks at."""

    def __init__(self, ids: set[int]) -> None:
        self.end_token_ids = frozenset(ids)


def zeros(sequence: list[int]) -> np.ndarray:
    return np.zeros(256, dtype=np.float32)
