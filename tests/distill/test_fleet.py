"""Several processes train what one does: real ones, started by torchrun, on gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ammd.distill import stage
from ammd.distill.fleet import Fleet
from ammd.distill.settings import DistillSettings
from ammd.errors import DistillError
from ammd.pipeline.toml_text import write_toml

BASE: dict[str, Any] = {"batch_size": 8, "precision": "float32", "chunk_tokens": 16}
DISTILLM = {
    "kind": "distillm",
    "steps": 8,
    "lr": 1e-3,
    "check_steps": 1,
    "validation_texts": 5,
    "tolerance": 0.0,
}
GAME = {"kind": "ammd", "steps": 6, "lr": 1e-3, "discount": 0.5, "rollout_reuse_steps": 2}


def command(prepared: Path, out: Path, settings: dict[str, Any], *more: str, processes: int) -> list[str]:
    path = prepared.parent / f"settings-{processes}.toml"
    path.write_text(write_toml(settings))
    return [
        *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", str(processes)),
        *("-m", "ammd.distill", str(prepared), str(out), "--settings", str(path), *more),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def launch(prepared: Path, out: Path, settings: dict[str, Any], *more: str, processes: int) -> None:
    done = subprocess.run(
        command(prepared, out, settings, *more, processes=processes),
        env=environment(),
        cwd=prepared.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def alone(prepared: Path, out: Path, settings: dict[str, Any]) -> None:
    out.mkdir()
    stage.run(stage.DistillInputs(prepared=prepared), DistillSettings.model_validate(settings), out)


def curves(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("processes", "objective"),
    [
        (3, GAME),
        (2, {"kind": "minillm", "steps": 4, "lr": 1e-3, "rollout_reuse_steps": 2}),
        (2, DISTILLM),
    ],
    ids=["ammd on 3", "minillm on 2", "distillm on 2"],
)
def test_several_processes_train_what_one_does(
    check_same: Any, small_prepared: Path, tmp_path: Path, processes: int, objective: dict[str, Any]
) -> None:
    settings = {**BASE, "warm": {"steps": 3, "lr": 1e-3}, "objective": objective}
    alone(small_prepared, tmp_path / "one", settings)
    launch(small_prepared, tmp_path / "many", settings, processes=processes)
    check_same(small_prepared, tmp_path / "one", tmp_path / "many", steps=3 + objective["steps"])


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (3, {"objective": GAME, "batch_size": 12, "micro_batch_size": 1, "checkpoint_activations": True}),
        (2, {"objective": DISTILLM}),
    ],
    ids=["ammd on 3 in pieces", "distillm on 2"],
)
def test_a_divided_student_learns_what_a_whole_one_does(
    check_same: Any, small_prepared: Path, tmp_path: Path, processes: int, more: dict[str, Any]
) -> None:
    settings = {**BASE, "warm": {"steps": 3, "lr": 1e-3}, **more}
    alone(small_prepared, tmp_path / "one", settings)
    launch(small_prepared, tmp_path / "many", {**settings, "divide_student": True}, processes=processes)
    check_same(small_prepared, tmp_path / "one", tmp_path / "many", steps=3 + more["objective"]["steps"])


@pytest.mark.parametrize("divided", [False, True], ids=["whole", "divided"])
def test_both_stacks_of_an_encoder_decoder_are_trained_together(
    check_same: Any, small_prepared_t5: Path, tmp_path: Path, divided: bool
) -> None:
    settings = {**BASE, "warm": {"steps": 3, "lr": 1e-3}, "objective": {**GAME, "steps": 4}}
    alone(small_prepared_t5, tmp_path / "one", settings)
    launch(small_prepared_t5, tmp_path / "many", {**settings, "divide_student": divided}, processes=2)
    check_same(small_prepared_t5, tmp_path / "one", tmp_path / "many", steps=7)


def test_learned_critics_are_the_same_in_all_processes(small_prepared: Path, tmp_path: Path) -> None:
    critic = {"kind": "linear", "start": "zero", "ascents": 4, "min_share": 0.0, "ascent_tokens": 32}
    settings = {
        **BASE,
        "warm": {"steps": 1},
        "objective": {"kind": "ammd", "steps": 12, "lr": 1e-3, "critic": critic},
    }
    launch(small_prepared, tmp_path / "many", settings, processes=2)
    shares = [row["critic_share_off"] for row in curves(tmp_path / "many") if "critic_share_off" in row]
    assert len(shares) == 12
    assert shares[-1] > shares[0]


@pytest.mark.parametrize("divided", [False, True], ids=["whole", "divided"])
def test_a_killed_process_ends_all_and_the_training_goes_on(
    small_prepared: Path, tmp_path: Path, divided: bool
) -> None:
    base = {**BASE, "divide_student": divided}
    settings = {**base, "warm": {"steps": 3, "lr": 1e-3}, "objective": {**GAME, "steps": 4000}}
    started = subprocess.Popen(
        command(small_prepared, tmp_path / "cut", settings, "--resume", str(tmp_path / "state"), processes=2),
        env=environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = tmp_path / "cut" / "curves.jsonl"
    while not lines.is_file() or lines.read_text().count("\n") < 8:
        assert started.poll() is None, started.communicate()[1][-3000:]
        time.sleep(0.1)
    ranks = [int(pid) for pid in children_of(started.pid)]
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    _, said = started.communicate()
    assert started.returncode == 1
    assert "SIGKILL" in said or "exitcode  : -9" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    whole = {**settings, "objective": GAME}
    alone(small_prepared, tmp_path / "one", whole)
    launch(small_prepared, tmp_path / "cut", whole, "--resume", str(tmp_path / "state"), processes=2)
    one, many = curves(tmp_path / "one"), curves(tmp_path / "cut")
    assert [row["step"] for row in many] == [row["step"] for row in one]
    # The first step of the second phase looks at the student that the snapshot held.
    assert many[3]["loss"] == pytest.approx(one[3]["loss"], rel=2e-3)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_batch_smaller_than_the_fleet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet()
    assert (fleet.rank, fleet.size, fleet.is_first) == (0, 1, True)
    fleet.size = 4
    fleet.check_rows(4, of="the off-policy side")
    with pytest.raises(
        DistillError, match="the off-policy side of a batch are `3` rows, too few for 4 processes"
    ):
        fleet.check_rows(3, of="the off-policy side")


def test_rows_that_cannot_be_shared_evenly_are_refused_where_they_must() -> None:
    fleet = Fleet()
    fleet.size = 3
    fleet.check_even(6, of="the on-policy side")
    with pytest.raises(
        DistillError, match="the on-policy side of a batch are `8` rows, which 3 processes cannot"
    ):
        fleet.check_even(8, of="the on-policy side")


@pytest.mark.parametrize("more", [{"lora": {"rank": 4}}, {"quantize_as": "gguf-q4_0"}])
def test_a_divided_student_has_plain_weights(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="divide_student excludes lora and quantize_as"):
        DistillSettings.model_validate({"divide_student": True, **more})


def test_shares_of_rows_are_in_order_and_differ_by_one_at_most() -> None:
    fleet = Fleet()
    fleet.size = 3
    for count in (3, 7, 8, 100):
        parts = []
        for rank in range(3):
            fleet.rank = rank
            parts.append(list(range(count))[fleet.share(count)])
        assert [row for part in parts for row in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_sends_nothing() -> None:
    fleet = Fleet()
    assert fleet.sums([1.5, 2]) == [1.5, 2]
    assert fleet.joined([1, 2]) == [1, 2]
    assert fleet.of_first("x") == "x"
    fleet.leave()
