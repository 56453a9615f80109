"""Sweeps on a real Ray cluster of two node processes, with stand-in stages."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ammd.errors import EngineError, RecipeError
from ammd.pipeline.ray_hosts import ray_hosts

STAND_IN = Path(__file__).parent / "stand_in"
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed: `pip install 'ammd[ray]'`"
)
SEEDS = ("--set", "distill.seed=[0, 1]")


@pytest.fixture
def start_cluster(stand_in, tmp_path, monkeypatch):
    """Start the process that holds the cluster; its `address` is where that is. Stages inherit its environment."""
    monkeypatch.setenv("STAND_IN_SPANS", str(tmp_path / "spans.jsonl"))
    started = []

    def start_cluster():
        process = subprocess.Popen(
            [sys.executable, str(STAND_IN / "ray_cluster.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        process.address = process.stdout.readline().strip()
        assert process.address, process.stderr.read()
        return process

    yield start_cluster
    for process in started:
        process.communicate(timeout=120)


@needs_ray
def test_both_nodes_make_stages_of_one_plan(start_cluster, recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_MEET", "distill:2")  # one on each node
    cluster = start_cluster()
    process = stand_in.start(recipe_path, tmp_path / "runs", *SEEDS, "--ray", cluster.address, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert [row["state"] for row in document["runs"]] == ["finished", "finished"]
    names = stand_in.ran()
    assert {name: names.count(name) for name in names} == {
        "prepare": 1,
        "distill": 2,
        "export": 2,
        "verify": 2,
        "evaluate": 2,
        "bench": 2,
    }
    spans = list(map(json.loads, (tmp_path / "spans.jsonl").read_text(encoding="utf-8").splitlines()))
    assert len({span["node"] for span in spans}) == 2
    monkeypatch.delenv("STAND_IN_MEET")
    again = stand_in.start(recipe_path, tmp_path / "runs", *SEEDS, "--json")  # the same plan without Ray
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert stand_in.ran() == []
    assert [row["run"] for row in json.loads(out)["runs"]] == [row["run"] for row in document["runs"]]


@needs_ray
def test_a_lost_node_fails_its_run_and_the_other_goes_on(
    start_cluster, recipe_path, tmp_path, stand_in, monkeypatch, wait_for_lines
):
    monkeypatch.setenv("STAND_IN_MEET", "distill:3")  # both wait, one of them until its node is gone
    cluster = start_cluster()
    process = stand_in.start(recipe_path, tmp_path / "runs", *SEEDS, "--ray", cluster.address, "--json")
    wait_for_lines(tmp_path / "ran.txt", 3)
    cluster.stdin.write("end the second node\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "gone\n"
    with (tmp_path / "spans.jsonl").open("a", encoding="utf-8") as spans:
        spans.write('{"what": "begin", "stage": "distill"}\n')
    out, err = process.communicate(timeout=300)
    assert process.returncode == 6, err
    rows = json.loads(out)["runs"]
    assert sorted(row["state"] for row in rows) == ["failed", "finished"]
    (failed,) = (row for row in rows if row["state"] == "failed")
    assert "was lost with stage `distill`" in failed["error"]


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("127.0.0.1:9", EngineError, "no Ray cluster at `127.0.0.1:9`: Connection refused"),
        ("here", RecipeError, "`--ray` = `here`: should be `auto` or HOST:PORT"),
        ("127.0.0.1:99999", RecipeError, "should be `auto` or HOST:PORT"),
    ],
)
def test_address_without_a_cluster_is_named_at_once(tmp_path, address, kind, message):
    with (
        pytest.raises(kind, match=re.escape(message)),
        ray_hosts(address, jobs=1, memory_bytes=None, runs_dir=tmp_path),
    ):
        pass


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    hosts = ray_hosts("auto", jobs=1, memory_bytes=None, runs_dir=tmp_path)
    with pytest.raises(EngineError, match="ray is not installed") as caught, hosts:
        pass
    assert caught.value.hint == "`pip install 'ammd[ray]'`"
