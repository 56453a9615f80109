"""Options that trade time for memory: they must not change what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ammd.distill.batches import TokenPair, build_batch
from ammd.distill.checkpoint import copy_in_dtype, load_model
from ammd.distill.loop import chunk_tokens
from ammd.distill.lora import add_adapters
from ammd.distill.lora_settings import Lora
from ammd.distill.policy import Policy
from ammd.distill.settings import DistillSettings
from ammd.distill.training import Training


def train(folder: Path, objective: dict[str, Any], **changes: Any) -> Training:
    settings = DistillSettings.model_validate(
        {
            "batch_size": 8,
            "precision": "float32",
            "chunk_tokens": 16,
            "objective": {"steps": 4, "lr": 1e-3, **objective},
            **changes,
        }
    )
    curves = folder / "curves.jsonl"
    training = Training(prepared=folder, student=folder / "student", settings=settings, curves=curves)
    training.second(settings.objective)
    return training


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in training.student.named_parameters()}


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "ammd", "discount": 0.5, "kd_weight": 0.3},
        {"kind": "gjsd"},
        {"kind": "minillm"},
    ],
    ids=lambda objective: objective["kind"],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_in_pieces_trains_the_same_student(
    small_prepared: Path, objective: dict[str, Any], rows: int
) -> None:
    whole, pieces = train(small_prepared, objective), train(small_prepared, objective, micro_batch_size=rows)
    start = dict(load_model(small_prepared / "student", dtype=torch.float32).named_parameters())
    for name, expected in weights(whole).items():
        moved = (expected - start[name.removeprefix("model.")]).abs().max()
        # Adam makes a full step of a gradient that is nothing but rounding, so only most numbers must agree.
        difference = (weights(pieces)[name] - expected).abs()
        assert difference.quantile(0.99) < 0.01 * moved


def test_pieces_cover_the_batch_and_lose_their_padding(pairs: list[TokenPair]) -> None:
    tokens = sum(len(response) for _, response in pairs)
    whole = build_batch(pairs, drawn_logprobs=torch.arange(tokens, dtype=torch.float32))
    found = list(whole.pieces(5))
    assert [len(piece.token_ids) for piece, _ in found] == [5, 5, 5, 1]
    assert torch.equal(torch.cat([piece.targets for piece, _ in found]), whole.targets)
    assert torch.equal(torch.cat([piece.last_in_row for piece, _ in found]), whole.last_in_row)
    for piece, place in found:
        assert piece.attention_mask.sum(1).max() == piece.token_ids.shape[1]
        assert len(piece.targets) == place.stop - place.start
        assert piece.drawn_logprobs is not None
        assert piece.drawn_logprobs.tolist() == list(range(place.start, place.stop))
    assert next(iter(whole.pieces(None)))[0] is whole


def test_activations_computed_again_give_the_same_weights(small_prepared: Path) -> None:
    objective = {"kind": "ammd"}
    plain = train(small_prepared, objective)
    again = train(small_prepared, objective, checkpoint_activations=True)
    for name, expected in weights(plain).items():
        torch.testing.assert_close(
            weights(again)[name], expected, rtol=1e-3, atol=1e-4
        )  # no cache, another order of sums


def test_checkpointed_layers_run_twice_and_their_dropout_stays_off(
    tiny_checkpoint: Path, pairs: list[TokenPair]
) -> None:
    policy = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
    policy.checkpoint_activations()
    runs = []
    mlp = policy.model.base_model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda *_: runs.append(mlp.training))
    policy(build_batch(pairs[:1])).sum().backward()
    assert runs == [False, False]


@pytest.mark.parametrize(
    ("gib", "vocabulary", "expected"),
    [(24, 49_152, 1024), (8, 49_152, 448), (4, 152_064, 64), (0.1, 10**6, 64)],
)
def test_chunks_follow_the_memory_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, gib: float, vocabulary: int, expected: int
) -> None:
    monkeypatch.setattr("ammd.distill.device.total_memory_bytes", lambda: int(gib * 2**30))
    assert chunk_tokens(DistillSettings(), vocabulary=vocabulary, device=torch.device("cpu")) == expected
    assert (
        chunk_tokens(DistillSettings(chunk_tokens=7), vocabulary=vocabulary, device=torch.device("cpu")) == 7
    )


def test_adapters_start_at_the_student_and_leave_its_weights_alone(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    before = model(ids).logits
    add_adapters(model, Lora(rank=4), seed=0)
    assert torch.equal(model(ids).logits, before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 4  # A and B of seven matrices in four layers
    assert not model.get_output_embeddings().weight.requires_grad


def test_adapters_are_merged_in_copies(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    add_adapters(model, Lora(rank=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    ids = torch.arange(3, 40)[None]
    merged = copy_in_dtype(model, torch.float32)
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)  # summed before


def test_a_student_with_adapters_is_trained_and_saved_as_a_plain_model(
    small_prepared: Path, tmp_path: Path, pairs: list[TokenPair]
) -> None:
    training = train(small_prepared, {"kind": "ammd", "steps": 30, "lr": 1e-2}, lora={"rank": 8})
    training.save(tmp_path / "saved", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    start = load_model(small_prepared / "student", dtype=torch.float32)
    assert set(dict(plain.named_parameters())) == set(dict(start.named_parameters()))
    assert torch.equal(plain.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert training.parameters == sum(parameter.numel() for parameter in start.parameters())
    batch = build_batch(pairs)
    torch.testing.assert_close(
        Policy(plain)(batch), training.student(batch), rtol=1e-4, atol=1e-4
    )  # summed before
    lines = (small_prepared / "curves.jsonl").read_text().splitlines()
    losses = [json.loads(line)["d_off"] for line in lines]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_adapters_and_rounded_weights_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="lora and quantize_as exclude each other"):
        DistillSettings(lora=Lora(), quantize_as="gguf-q4_0")
