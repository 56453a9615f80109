"""Types chosen under a budget."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ammd.errors import ExportError
from ammd.export.allocation import Option, Plan, best_within, finest, smallest, worthwhile
from ammd.export.schemes import Scheme
from ammd.export.sensitivity import _choose, expected_losses, row_order
from ammd.export.settings import ExportSettings
from ammd.export.stage import ExportInputs, run


def _options(*pairs: tuple[int, float]) -> list[Option]:
    return [Option(type_name=f"T{size}", bytes=size, loss=loss) for size, loss in pairs]


def test_only_the_convex_hull_is_worth_it() -> None:
    found = worthwhile(_options((4, 4.0), (1, 10.0), (2, 9.5), (3, 5.0), (5, 6.0), (9, 1.0), (1, 12.0)))
    # 2 buys less a byte than 3 does, 5 loses more than 4, and the second of one byte more than the first.
    assert [(option.bytes, option.loss) for option in found] == [(1, 10.0), (3, 5.0), (4, 4.0), (9, 1.0)]


def test_the_choice_is_within_its_limit_and_near_the_best_of_all() -> None:
    """Against every combination of a small case in which one tensor is a third of all bytes."""
    random = np.random.default_rng(0)
    options = {
        f"t{index}": _options(
            *((size * width, float(loss)) for size, loss in zip((2, 3, 5, 8), losses, strict=True))
        )
        for index, width in enumerate((1, 3, 2, 1, 4, 6))
        for losses in [np.sort(random.exponential(size=4))[::-1] * width]
    }
    every = [
        (sum(option.bytes for option in chosen), sum(option.loss for option in chosen))
        for chosen in itertools.product(*options.values())
    ]
    assert best_within(options, smallest(options).bytes - 1) is None
    ratios = []
    for limit in range(smallest(options).bytes, finest(options).bytes + 1):
        plan = best_within(options, limit)
        assert plan is not None
        assert plan.bytes <= limit
        own = [next(o for o in options[name] if o.type_name == kind) for name, kind in plan.types.items()]
        assert (sum(o.bytes for o in own), sum(o.loss for o in own)) == (plan.bytes, pytest.approx(plan.loss))
        ratios.append(plan.loss / min(loss for size, loss in every if size <= limit))
    assert max(ratios) < 1.35
    assert np.mean(ratios) < 1.05
    assert finest(options).loss == pytest.approx(min(loss for _, loss in every))


def test_expected_loss_is_the_kl_of_a_small_change(tiny_checkpoint: Path) -> None:
    """Against KL itself, computed with the change in the weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    model.requires_grad_(False)
    weight = model.model.layers[3].mlp.down_proj.weight.requires_grad_(True)
    change = torch.randn_like(weight) * 0.02

    class OneError:
        def __init__(self) -> None:
            self.bytes = {"q": {"w": 1}}

        def error(self, kind: str, name: str) -> torch.Tensor:
            return change

    pieces = [torch.randint(3, 260, (24,)).tolist() for _ in range(400)]
    expected = expected_losses(model, pieces, {"w": weight}, OneError())["q"]["w"]  # type: ignore[arg-type]
    with torch.no_grad():
        before = [model(torch.tensor([piece])).logits[0].log_softmax(-1) for piece in pieces[:50]]
        weight += change
        after = [model(torch.tensor([piece])).logits[0].log_softmax(-1) for piece in pieces[:50]]
    kl = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(before, after, strict=True)]
    # 400 draws: the mean of squares of as many normal numbers is off by 7 % one time in three.
    assert expected == pytest.approx(float(torch.stack(kl).mean()), rel=0.25)


def test_rows_are_found_where_the_converter_put_them() -> None:
    import torch

    weight = torch.randn(8, 4)
    stored = weight.half().numpy()
    np.testing.assert_array_equal(row_order(stored, weight), np.arange(8))
    order = np.array([3, 1, 0, 2, 7, 6, 5, 4])
    np.testing.assert_array_equal(row_order(stored[order], weight), order)
    with pytest.raises(ExportError, match="does not hold the checkpoint's rows"):
        row_order(stored[:, ::-1], weight)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"prompt": f"Name {n} things.", "response": f"the {n} hats and a cat"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _mixed(checkpoint: Path, folder: Path, texts: Path | None, **budget: Any) -> dict[str, Any]:
    settings = ExportSettings.model_validate({"schemes": ["gguf-mixed"], "mixed": budget})
    folder.mkdir()
    (found,) = run(ExportInputs(checkpoint=checkpoint, texts=texts), settings, folder)["artifacts"]
    return found


@pytest.fixture(scope="module")
def small(
    wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, texts: Path
) -> tuple[Path, dict[str, Any]]:
    """A mixture of four bits a weight, and its facts."""
    folder = tmp_path_factory.mktemp("mixed") / "small"
    return folder / "student-mixed.gguf", _mixed(wide_checkpoint, folder, texts, bits=4.0)


@pytest.mark.real
def test_a_mixture_keeps_its_budget_and_a_larger_one_loses_less(
    small: tuple[Path, dict[str, Any]], wide_checkpoint: Path, tmp_path: Path, texts: Path
) -> None:
    from ammd.runtime.engine import open_engine

    path, facts = small
    large = _mixed(wide_checkpoint, tmp_path / "large", texts, size=f"{facts['bytes'] * 1.5 / 1e6:.3f} MB")
    assert facts["bits_per_weight"] <= 4.0
    assert facts["bytes"] < large["bytes"] <= facts["bytes"] * 1.5 + 1000
    assert large["choice"]["expected_kl_nats"] < facts["choice"]["expected_kl_nats"]
    assert len(facts["choice"]["tensors"]) > 1  # a mixture
    assert sum(facts["choice"]["tensors"].values()) == 2 * 7 + 1
    assert facts["choice"]["budget"] == {"bits": 4.0}
    with open_engine(path, threads=1, context_tokens=16) as engine:
        assert np.isfinite(engine.prefill([1, 20, 30])).all()


@pytest.mark.real
def test_a_quality_budget_is_kept_with_the_fewest_bytes(
    small: tuple[Path, dict[str, Any]], wide_checkpoint: Path, tmp_path: Path, texts: Path
) -> None:
    _, facts = small
    limit = facts["choice"]["measured_kl_nats"] / 2
    found = _mixed(wide_checkpoint, tmp_path / "found", texts, max_kl=limit)
    assert found["choice"]["measured_kl_nats"] <= limit
    assert found["bytes"] > facts["bytes"]


class FakeTrial:
    """Measures twice what was expected."""

    def kl(self, plan: Plan) -> float:
        return 2 * plan.loss


def test_the_choice_goes_by_what_is_measured() -> None:
    options = {f"t{index}": _options((100, 1.0), (200, 0.5), (400, 0.1)) for index in range(20)}

    def choose(**limit: Any) -> tuple[Plan, float]:
        given = {"bytes_limit": None, "max_kl": None} | limit
        return _choose(options, FakeTrial(), **given)  # type: ignore[arg-type]

    plan, kl = choose(max_kl=20.0)
    assert kl == pytest.approx(2 * plan.loss)
    assert kl <= 20
    # Ten nats are expected there, which takes 20 tensors of 200 bytes; less than a step of the search above it.
    assert 4000 <= plan.bytes <= 4000 + 200
    assert choose(bytes_limit=4000)[0].bytes == 4000
    with pytest.raises(ExportError, match=r"the finest mixture is 4 nats a token .* `max_kl` is 1"):
        choose(max_kl=1.0)
    with pytest.raises(
        ExportError, match="the smallest mixture takes 2000 bytes of weights, the budget leaves 50"
    ):
        choose(bytes_limit=50)


def test_a_mixture_needs_texts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no texts to measure a mixture on"):
        _mixed(tiny_checkpoint, tmp_path / "out", None, bits=5)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"schemes": ["gguf-mixed"]}, "`gguf-mixed` and a `mixed` table with its budget go together"),
        ({"schemes": ["gguf-f16"], "mixed": {"bits": 5}}, "go together"),
        ({"schemes": ["gguf-mixed"], "mixed": {}}, "name one of `size`, `bits` and `max_kl`"),
        ({"schemes": ["gguf-mixed"], "mixed": {"bits": 4, "max_kl": 1}}, "name one of"),
        ({"schemes": ["gguf-mixed"], "mixed": {"size": "90"}}, "should be a number with MB, MiB, GB or GiB"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExportSettings.model_validate(document)


def test_sizes_are_read_with_their_units() -> None:
    for text, expected in (("90 MB", 90_000_000), ("1.5gib", 3 << 29), (" 10MiB ", 10 << 20)):
        settings = ExportSettings.model_validate({"schemes": [Scheme.GGUF_MIXED], "mixed": {"size": text}})
        assert settings.mixed is not None
        assert settings.mixed.size_bytes == expected
