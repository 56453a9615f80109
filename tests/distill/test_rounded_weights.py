"""Training in rounded weights: the loss and gradient are the rounded model's, the step is the master's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ammd.distill import prepare, stored_as, student_texts, training
from ammd.distill.batches import build_batch
from ammd.distill.checkpoint import copy_in_dtype, load_model
from ammd.distill.fake_quant import q4_0
from ammd.distill.policy import Policy
from ammd.distill.rounded_weights import RoundedWeights
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.stored_as import roundings_of
from ammd.distill.student_settings import DepthStudent
from ammd.distill.trainer import PhaseState
from ammd.distill.training import Training
from ammd.errors import DistillError

Tensors = dict[str, torch.Tensor]
LR = 1e-3


@pytest.fixture(autouse=True)
def known_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one is refused, see `test_stored_as`; it is not used here."""
    monkeypatch.setattr(stored_as, "_builder_version", lambda: "0.18.0")


@pytest.fixture(scope="module")
def prepared(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"prompt": f"the {i} in a"}) for i in range(12)))
    (folder / "heldout.jsonl").write_text(json.dumps({"prompt": "an"}))
    settings = PrepareSettings(
        teacher=str(tiny_checkpoint),
        student=DepthStudent(layers=3),
        prompts=str(folder / "texts.jsonl"),
        heldout=str(folder / "heldout.jsonl"),
        response_tokens=8,
    )
    prepare.run(prepare.PrepareInputs(), settings, folder)
    return folder


def begin(prepared: Path, tmp_path: Path, scheme: str | None, **objective: object) -> Training:
    settings = DistillSettings.model_validate(
        {
            "batch_size": 4,
            "precision": "float32",
            "objective": {"steps": 1, "lr": LR, "rollout_reuse_steps": 1, **objective},
            "quantize_as": scheme,
        }
    )
    (tmp_path / "curves.jsonl").unlink(missing_ok=True)
    return Training(
        prepared=prepared, student=prepared / "student", settings=settings, curves=tmp_path / "curves.jsonl"
    )


def weights_of(training: Training) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in training.student.named_parameters()}


def round_all(training: Training, scheme: str) -> Tensors:
    """Return the student's weights as a file of `scheme` holds them."""
    roundings = roundings_of(training.student.model, scheme)
    return {
        name: roundings[parameter](parameter.detach())
        if parameter in roundings
        else parameter.detach().clone()
        for name, parameter in training.student.named_parameters()
    }


def watch(monkeypatch: pytest.MonkeyPatch, look: Callable[[Training, PhaseState], None]) -> None:
    """Call `look` before the first step of a phase and after each."""
    monkeypatch.setattr(Training, "_keep", look)


@pytest.mark.parametrize("scheme", ["gguf-q4_0", "gguf-q8_0", "onnx-int4"])
def test_loss_and_gradient_are_the_rounded_models_and_the_step_is_the_masters(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Against a student that was rounded for good: same texts, same loss, same moments in the optimizer."""
    moments: list[Tensors] = []
    watch(
        monkeypatch,
        lambda _, state: moments.append(
            {k: v.clone() for k, v in state.state().part("loop").part("optimizer").tensors.items()}
        ),
    )
    trained = begin(prepared, tmp_path, scheme)
    masters, expected = weights_of(trained), round_all(trained, scheme)
    trained.second(trained.settings.objective)
    line = json.loads((tmp_path / "curves.jsonl").read_text())

    rounded = begin(prepared, tmp_path, None)
    with torch.no_grad():
        for name, parameter in rounded.student.named_parameters():
            parameter.copy_(expected[name])
    rounded.second(rounded.settings.objective)
    other = json.loads((tmp_path / "curves.jsonl").read_text())

    clock = {"seconds", "tokens_per_s"}
    assert {k: v for k, v in line.items() if k not in clock} == {
        k: v for k, v in other.items() if k not in clock
    }
    assert moments[1].keys() == moments[3].keys() != set()
    assert all(torch.equal(moments[1][key], moments[3][key]) for key in moments[1])
    for name, after in weights_of(trained).items():
        step, twin = after - masters[name], rounded.student.get_parameter(name).detach() - expected[name]
        torch.testing.assert_close(step, twin, rtol=0, atol=1e-7)  # two sums in float32, of weights up to 1
        assert step.abs().max() > 0.5 * LR


def test_whoever_looks_at_the_student_sees_rounded_weights(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its head and in the copy that writes its texts; under the names it always had."""
    seen: list[Tensors] = []
    sample = student_texts.sample_responses

    def record(sampler, *arguments, **options):
        seen.append({f"model.{name}": parameter.clone() for name, parameter in sampler.named_parameters()})
        return sample(sampler, *arguments, **options)

    monkeypatch.setattr(student_texts, "sample_responses", record)
    trained = begin(prepared, tmp_path, "gguf-q4_0")
    expected = round_all(trained, "gguf-q4_0")
    heads: list[torch.Tensor] = []
    watch(monkeypatch, lambda self, _: heads.append(self.student.head.detach().clone()))
    trained.second(trained.settings.objective)
    assert seen[0].keys() == expected.keys()
    assert all(torch.equal(seen[0][name], expected[name]) for name in expected)
    assert torch.equal(heads[0], expected["model.model.embed_tokens.weight"])
    assert not torch.equal(heads[0], heads[1])


def test_the_validation_loss_is_the_rounded_students(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    mean_loss = training.mean_loss

    def record(*arguments, **options) -> float:
        losses.append(mean_loss(*arguments, **options))
        return losses[-1]

    monkeypatch.setattr(training, "mean_loss", record)
    for scheme in ("gguf-q4_0", None):
        one = Training(
            prepared=prepared,
            student=prepared / "student",
            settings=DistillSettings.model_validate(
                {
                    "batch_size": 4,
                    "precision": "float32",
                    "objective": {"kind": "distillm", "steps": 1, "validation_texts": 3},
                    "quantize_as": scheme,
                }
            ),
            curves=tmp_path / "curves.jsonl",
        )
        if scheme is None:
            expected = round_all(one, "gguf-q4_0")
            with torch.no_grad():
                for name, parameter in one.student.named_parameters():
                    parameter.copy_(expected[name])
        one.second(one.settings.objective)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scheme", ["gguf-q4_0", "onnx-int4"])
def test_what_the_last_step_left_is_what_the_saved_student_is_rounded_to(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The checkpoint holds masters, in bfloat16; the file rounds them to what training ended with."""
    ended: list[Tensors] = []
    watch(monkeypatch, lambda self, _: ended.append(weights_of(self)))
    trained = begin(prepared, tmp_path, scheme, steps=3)
    trained.second(trained.settings.objective)
    trained.save(tmp_path / "student")
    saved = load_model(tmp_path / "student", dtype=torch.float32)
    roundings = roundings_of(saved, scheme)
    held = dict(saved.named_parameters())
    assert {f"model.{name}" for name in held} == set(ended[-1])
    for name, parameter in held.items():
        if parameter in roundings:
            assert torch.equal(roundings[parameter](parameter.detach()), ended[-1][f"model.{name}"]), name
            assert not torch.equal(parameter.detach(), ended[-1][f"model.{name}"]), name


def test_masters_come_back_also_after_an_error(tiny_checkpoint: Path) -> None:
    policy = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    rounded = RoundedWeights(roundings_of(policy.model, "gguf-q4_0"))
    with pytest.raises(KeyboardInterrupt), rounded.applied():
        assert not torch.equal(policy.head, before["model.model.embed_tokens.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())


def test_a_copy_keeps_rounded_values_and_nothing_else(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, rounding in roundings_of(expected, "onnx-int4").items():
            parameter.copy_(rounding(parameter))
    with RoundedWeights(roundings_of(model, "onnx-int4")).applied():
        copied = copy_in_dtype(model, torch.bfloat16)
    wanted = copy_in_dtype(expected, torch.bfloat16).state_dict()
    assert copied.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in copied.state_dict().items())


def test_rounded_in_chunks_is_rounded_at_once() -> None:
    """More than one chunk of rows, the last one shorter."""
    weights = torch.nn.Parameter(torch.randn(300, 704, generator=torch.Generator().manual_seed(0)))
    expected = q4_0(weights.detach())
    with RoundedWeights({weights: q4_0}).applied():
        assert torch.equal(weights, expected)


def test_tied_weights_stay_one_and_collect_one_gradient(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    policy = Policy(model)
    with RoundedWeights(roundings_of(model, "gguf-q8_0")).applied():
        assert policy.head is model.get_input_embeddings().weight
        (policy(build_batch([((1, 20), (30, 2))])) @ policy.head.T).sum().backward()
    assert policy.head.grad is not None
    assert torch.isfinite(policy.head.grad).all()


def test_an_unknown_model_is_refused_before_any_work(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_as, "KNOWN_MODEL_TYPES", ("other",))
    with pytest.raises(DistillError, match="model of type `llama`"):
        begin(prepared, tmp_path, "gguf-q4_0")
