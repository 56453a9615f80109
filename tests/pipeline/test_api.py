"""`import ammd` in a script: the page's examples, the same records as the command line's, typed and light."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ammd as package
from ammd.errors import BudgetExceededError, EngineError, RecipeError
from ammd.pipeline import alone, launch
from ammd.pipeline import run as run_module
from ammd.pipeline.launch import Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


@pytest.fixture
def quick(stand_in, recipe_path, tmp_path, monkeypatch, bench_document):
    """The stages take no time, and a folder with `mine.toml` is the current one; returns the numbers of `bench`."""
    monkeypatch.setitem(run_module.run_recipe.__kwdefaults__, "stages", stand_in.stages)
    monkeypatch.setattr(alone, "STAGES", stand_in.stages)
    document = bench_document()

    def child(stage, **options):
        if stage.name == "bench":
            results = json.loads(json.dumps({key: document[key] for key in ("bench", "machine")}))
            return Outcome(results=results, seconds=1.0, cpu_seconds=1.0, peak_rss_bytes=1, joules=None)
        return launch.run_in_child(stage, **options)

    monkeypatch.setattr(alone, "run_in_child", child)
    monkeypatch.setattr("ammd.pipeline.bench_files.describe_machine", lambda: document["machine"])
    metrics = {"rouge_l": {"value": 0.3, "low": 0.2, "high": 0.4}}
    monkeypatch.setattr(  # the models that stand in cannot answer
        "ammd.pipeline.api.score_tasks",
        lambda paths, *, tasks, **_: {
            "models": [{"name": path.name, "tasks": {tasks[0]: {"metrics": metrics}}} for path in paths]
        },
    )
    recipe_path.rename(recipe_path.with_name("mine.toml"))
    monkeypatch.chdir(recipe_path.parent)
    return document


def test_examples_of_the_page_run_one_after_the_other(quick, capfd):
    code = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))
    assert code.count("ammd.") >= len(package.__all__)
    exec(compile(code, "docs/api.md", "exec"), {})
    out = capfd.readouterr().out
    assert "gguf-q8_0.gguf" in out
    assert "'fine'" in out
    assert Path("phone/gguf-q8_0.gguf").is_file()


def test_example_of_the_readme_runs(quick, capfd):
    text = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## From Python") :]
    exec(compile(section.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    assert "gguf-q8_0" in capfd.readouterr().out


def test_every_function_is_on_the_page_with_an_example():
    text = PAGE.read_text(encoding="utf-8")
    for name in set(package.__all__) - {"errors"}:
        assert f"## ammd.{name}\n\n```python\n" in text


def test_records_are_those_of_the_command_line(quick, ammd):
    assert ammd("run", "mine.toml", "--quiet")[0] == 0
    printed = json.loads(ammd("run", "mine.toml", "--json", "--quiet")[1])
    assert package.run("mine.toml") == printed
    assert package.run(Path("mine.toml"), settings={"seed": 7}) == printed  # the recipe's own
    file = printed["artifacts"][0]["path"]
    documents = package.verify(file), json.loads(ammd("verify", file, "--json")[1])
    costs = {"seconds", "cpu_seconds", "peak_rss_bytes", "joules"}
    first, second = ({key: value for key, value in one.items() if key not in costs} for one in documents)
    assert first == second


def test_values_of_python_change_settings(quick):
    summary = package.run(
        "mine.toml",
        settings={
            "name": "other",
            "prepare.prompts": Path("heldout.jsonl"),
            "export": {"schemes": ("gguf-f16",)},
        },
        until="distill",
    )
    assert summary["run"].startswith("other/")
    assert summary["recipe"]["prepare"]["prompts"] == str(Path.cwd() / "heldout.jsonl")
    assert summary["recipe"]["export"]["schemes"] == ["gguf-f16"]
    assert [row["stage"] for row in summary["stages"]] == ["prepare", "distill"]


def test_errors_have_a_hint_and_the_exit_code(quick):
    with pytest.raises(RecipeError, match=r"2 faults in `mine.toml`") as caught:
        package.run("mine.toml", settings={"seeds": 1, "distill.batch_size": "many"})
    assert caught.value.exit_code == 2
    assert caught.value.hint
    with pytest.raises(package.errors.ArtifactError, match="is not a checkpoint"):
        package.export_checkpoint("none")


def test_a_regression_is_raised_and_carries_what_was_measured(quick, bench_document):
    Path("baseline.json").write_text(json.dumps(package.bench("teacher")), encoding="utf-8")
    quick["bench"] = bench_document(seed=1, slowdown=0.1)["bench"]
    with pytest.raises(BudgetExceededError) as caught:
        package.bench(["teacher"], baseline="baseline.json")
    assert caught.value.exit_code == 7
    assert "regression" in {row["verdict"] for row in caught.value.facts["document"]["gate"]["rows"]}
    assert package.bench("teacher", baseline="baseline.json", max_regression=0.2)["gate"]


def test_a_run_with_a_file_that_could_not_be_measured_raises_and_is_kept(quick, monkeypatch):
    failed = {"validity": "invalid", "validity_reasons": ["killed"], "replaced": [], "processes": 0}
    failed |= {"threads": 1, "failure": {"hint": "close other programs"}}
    real = run_module.publish_report

    def publish(recipe, folder, done):
        summary = real(recipe, folder, done)
        summary["artifacts"][0]["bench"] = {"rows": [failed]}
        return summary

    monkeypatch.setattr(run_module, "publish_report", publish)
    with pytest.raises(EngineError, match="could not be measured: killed") as caught:
        package.run("mine.toml")
    assert len(caught.value.facts["document"]["artifacts"]) == 2


def test_functions_are_typed_whole_and_only_known_names_are_there():
    for name in set(package.__all__) - {"errors"}:
        signature = inspect.signature(getattr(package, name))
        assert signature.return_annotation == "Document"
        assert all(argument.annotation is not argument.empty for argument in signature.parameters.values())
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="`ammd` has no attribute `fly`"):
        _ = package.fly


def test_functions_are_loaded_without_torch():
    code = (
        "import sys, ammd; ammd.run; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'click') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_compare_is_the_command_and_a_gate_raises_with_the_document(
    build_run, bench_document, tmp_path, ammd
):
    runs = tmp_path / "runs"
    build_run(runs, "aaaa", bench_document(), rouge=0.5)
    build_run(runs, "bbbb", bench_document(), rouge=0.3)
    printed = json.loads(ammd("compare", "aaaa", "bbbb", "--runs-dir", runs, "--json")[1])
    assert package.compare("aaaa", "bbbb", runs_dir=runs) == printed
    with pytest.raises(BudgetExceededError, match="rouge_l") as caught:
        package.compare(runs / "mine" / "aaaa", "bbbb", runs_dir=runs, gate=True)
    assert caught.value.facts["document"] == printed
    allowed = package.compare("aaaa", "bbbb", runs_dir=runs, gate=True, limits={"rouge_l": 0.3})
    assert {row["limit"] for row in allowed["changes"] if row["metric"] == "rouge_l"} == {"0.3"}
