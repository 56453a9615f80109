"""`ammd lm-eval`: the harness's own command line on one of our files."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime.lm_eval_command import run_lm_eval

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: `pip install 'ammd[lm-eval]'`",
)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from ammd.pipeline.cli import main; main()",
        "lm-eval",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": "the thing", "answer": "an"}, {"question": "and the", "answer": "in"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["an", "in"],
        "doc_to_target": "answer",
    }
    (folder / "mine.yaml").write_text(json.dumps(task))
    return folder


@needs_harness
def test_the_harness_scores_a_file(tiny_checkpoint: Path, task: Path, tmp_path: Path) -> None:
    done = run(
        tiny_checkpoint, "--tasks", "mine", "--include_path", task, "--output_path", tmp_path / "out",
        "--model_args", "threads=1,max_length=100", "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|mine" in done.stdout
    assert "|acc" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["model"] == "ammd"
    assert config["model_args"] == {"pretrained": str(tiny_checkpoint), "threads": 1, "max_length": 100}
    assert config["model_engine_settings"]["threads"] == 1
    assert len(config["model_sha256"]) == 64
    (samples,) = (tmp_path / "out").rglob("samples_mine_*.jsonl")
    assert len(samples.read_text().splitlines()) == 2


@needs_harness
def test_what_the_harness_refuses_is_one_line(tiny_checkpoint: Path) -> None:
    done = run(tiny_checkpoint, "--tasks", "no_such_task")
    assert done.returncode == 2
    assert "error: lm-evaluation-harness: Tasks not found: no_such_task\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_told_before_the_harness_begins(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model at"):
        run_lm_eval(tmp_path / "none.gguf", [])


def test_a_missing_harness_is_told_with_its_extra(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(EngineError, match="cannot be used") as caught:
        run_lm_eval(tiny_checkpoint, ["--tasks", "any"])
    assert "ammd[lm-eval]" in caught.value.hint
