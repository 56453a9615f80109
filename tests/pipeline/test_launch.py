"""The border between `ammd` and a stage's process: what comes back, and what is left when something dies."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest

from ammd.errors import EngineError, ExportError, ParityError
from ammd.export.settings import ExportSettings
from ammd.pipeline.launch import run_in_child
from ammd.pipeline.stages import STAGES
from ammd.runtime.settings import BenchSettings


@pytest.fixture
def launch(tmp_path, stand_in):
    """Run the stand-in export in a child."""
    folder = tmp_path / "out"
    folder.mkdir()

    def launch(stage="export"):
        return run_in_child(stand_in.stages[stage], inputs={}, settings=ExportSettings(), folder=folder)

    return launch


def test_results_and_costs_come_back(launch):
    outcome = launch()
    assert outcome.results["artifacts"][0]["name"] == "gguf-f16"
    assert outcome.seconds > 0
    assert outcome.peak_rss_bytes > 5 << 20  # more than a bare interpreter


def test_processor_time_of_what_a_stage_starts_is_counted(launch, monkeypatch):
    idle = launch().cpu_seconds
    monkeypatch.setenv("STAND_IN_FAULT", "export:compute")
    assert launch().cpu_seconds > idle + 0.9


def test_error_keeps_class_message_hint_and_facts(launch, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:raise")
    with pytest.raises(ParityError, match="`x` differs") as caught:
        launch()
    assert caught.value.hint == "look at it"
    assert caught.value.facts["path"] == "x"


def test_unexpected_exception_gets_the_class_of_its_stage(launch, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:unexpected")
    with pytest.raises(ExportError, match="stage `export` failed: ZeroDivisionError: by nought") as caught:
        launch()
    assert "--debug" in caught.value.hint
    assert "ZeroDivisionError" in caught.value.facts["traceback"]


@pytest.mark.parametrize("fault", ["memory", "cpu-memory", "gpu-memory"])
def test_memory_error_says_so(launch, monkeypatch, fault):
    monkeypatch.setenv("STAND_IN_FAULT", f"export:{fault}")
    with pytest.raises(ExportError, match=r"stage `export` failed: out of memory$"):
        launch()


def test_killed_child_is_probably_out_of_memory(launch, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:kill")
    with pytest.raises(ExportError, match=r"was killed \(SIGKILL\) at .* GiB, probably for want of memory"):
        launch()


def test_a_stages_own_variables_give_way_to_the_users(launch, stand_in, monkeypatch, capfd):
    stand_in.stages["export"] = dataclasses.replace(
        stand_in.stages["export"], environment={"STAND_IN_FAULT": "export:print"}
    )
    monkeypatch.delenv("STAND_IN_FAULT", raising=False)
    launch()
    assert "chatter on standard output" in capfd.readouterr().err
    monkeypatch.setenv("STAND_IN_FAULT", "export:kill")
    with pytest.raises(ExportError, match="SIGKILL"):
        launch()


def test_the_stage_that_measures_memory_has_the_allocator_of_its_users():
    assert not STAGES["bench"].environment


def test_processes_of_a_benchmark_are_its_own_affair(tmp_path, stand_in):
    """They are measured one after the other; only a training is shared by as many processes of the stage."""
    inputs = {"artifacts": [{"name": "a"}]}
    run_in_child(
        stand_in.stages["bench"], inputs=inputs, settings=BenchSettings(processes=3), folder=tmp_path
    )
    assert stand_in.ran() == ["bench"]
    assert [stage.name for stage in STAGES.values() if stage.shared] == ["distill"]


def test_child_that_ends_without_an_answer(launch, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:exit")
    with pytest.raises(ExportError, match="ended with exit code 9 without an answer"):
        launch()


def test_stage_that_cannot_be_imported(launch, stand_in):
    stand_in.stages["bench"] = dataclasses.replace(stand_in.stages["bench"], module="no_such_module")
    with pytest.raises(EngineError, match="No module named 'no_such_module'"):
        launch("bench")


def test_output_of_a_stage_does_not_reach_standard_output(launch, monkeypatch, capfd):
    monkeypatch.setenv("STAND_IN_FAULT", "export:print")
    launch()
    out, err = capfd.readouterr()
    assert out == ""
    assert "chatter on standard output" in err


def test_killed_parent_takes_the_stage_and_what_it_started_along(
    recipe_path, tmp_path, stand_in, monkeypatch
):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    with stand_in.start(recipe_path, tmp_path / "runs") as parent:
        pids = [wait_for_pid(tmp_path / f"{who}.pid") for who in ("child", "grandchild")]
        parent.kill()
        assert parent.wait(60) == -signal.SIGKILL
        parent.stdout.close()
        parent.stderr.close()
    for pid in pids:
        wait_until_gone(pid)


def wait_for_pid(path: Path) -> int:
    deadline = time.monotonic() + 120
    while not path.exists() or not path.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.05)
    return int(path.read_text(encoding="utf-8"))


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; who should reap it (here, process 1) may take its time.
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
