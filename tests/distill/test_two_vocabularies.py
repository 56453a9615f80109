"""`benchmarks/cross_tokenizer.py` on a book of a few made-up sentences: what is judged, and that it goes on."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ammd.distill.checkpoint import load_model
from ammd.distill.policy import Policy
from ammd.distill.prompts import read_examples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("cells", "comparison", "methods", "parts", "two_vocabularies")
RIVALS = ("seqkd", "forward_kl", "gkd")
WORDS = {
    "pride-and-prejudice": "the cat sees a small dog and runs over green hills",
    "tiny-shakespeare": "the king sees thy small crown and weeps over cold hills",
}


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return {name: importlib.import_module(name) for name in NAMES}


@pytest.fixture(scope="module")
def work(modules: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    books = folder / "data" / "text-books"
    books.mkdir(parents=True)
    chance = random.Random(0)
    for name, words in WORDS.items():
        sentences = [f"{' '.join(chance.choices(words.split(), k=8)).capitalize()}." for _ in range(120)]
        rows = [{"text": " ".join(sentences[start : start + 6])} for start in range(0, 120, 6)]
        (books / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    two = modules["two_vocabularies"]
    sizes = two.Sizes(teacher_steps=60, train_prompts=20, judged_prompts=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two, "WARM", two.WarmStart(steps=4))
        two.prepare(folder / "work", folder / "data", sizes)
    return folder / "work"


def comparison(modules: dict[str, ModuleType], work: Path, *, max_cells: int | None) -> object:
    methods = modules["methods"]
    return modules["comparison"].Comparison(
        setting=modules["two_vocabularies"].TwoVocabularies(work=work, steps=2, learning_rates=(1e-3,)),
        methods={name: methods.METHODS[name] for name in (*RIVALS, methods.REFERENCE)},
        seeds=[0, 1],
        reference=methods.REFERENCE,
        in_time=False,
        max_cells=max_cells,
    )


def test_both_sides_differ_and_can_be_compared(modules: dict[str, ModuleType], work: Path) -> None:
    facts = modules["two_vocabularies"].read_facts(work)
    assert facts["test_texts"] == 5
    match = facts["match"]
    assert match["shared_tokens"] < min(match["student_tokens"], match["teacher_tokens"])
    assert match["aligned_share"] > 0.2


def test_nats_are_those_of_transformers(modules: dict[str, ModuleType], work: Path) -> None:
    model = load_model(work / "warm", dtype=torch.float32)
    pairs = [text.pair for text in read_examples(work / "judged" / "test.jsonl")]
    expected = []
    for prompt, response in pairs:
        labels = torch.tensor([[*[-100] * len(prompt), *response]])
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([[*prompt, *response]]), labels=labels).loss
        expected.append(float(loss) * len(response))
    assert modules["two_vocabularies"].nats_of(Policy(model), pairs) == pytest.approx(expected, rel=1e-4)


def test_it_goes_on_to_rows_and_differences_of_nats_a_byte(
    modules: dict[str, ModuleType], work: Path
) -> None:
    compare, unfinished = modules["comparison"], modules["cells"].Unfinished
    with pytest.raises(unfinished, match="1 of 4 cells are missing"):
        compare.results_of(comparison(modules, work, max_cells=3))
    begun = sorted((work / "cells").rglob("*.json"))
    times = [path.stat().st_mtime_ns for path in begun]
    results = compare.results_of(comparison(modules, work, max_cells=None))
    assert [path.stat().st_mtime_ns for path in begun] == times
    assert len(begun) == 3
    assert len(results) == 8
    values: dict[tuple[str, str], list[float]] = {}
    for row in compare.rows_of(results):
        values.setdefault((row["method"], row["metric"]), []).append(row["value"])
    first = next(one["metrics"] for one in results if one["method"] == "ammd")
    name = "pride-and-prejudice/teacher"
    whole = sum(first[f"{name}_nats_per_byte"]) / sum(first[f"{name}_bytes"])
    assert values["ammd", "teacher_nats_per_byte"][0] == pytest.approx(whole)
    differences = {
        row["minus"]: row
        for row in compare.comparisons(results, reference="ammd")
        if row["metric"] == "teacher_nats_per_byte"
    }
    assert set(differences) == set(RIVALS)
    for rival, row in differences.items():
        # Both seeds judge the same texts, so that the ratio of sums is the mean of both ratios.
        means = [sum(values[method, "teacher_nats_per_byte"]) / 2 for method in ("ammd", rival)]
        assert row["difference"] == pytest.approx(means[0] - means[1], abs=1e-9)
        assert row["low"] <= row["difference"] <= row["high"]
