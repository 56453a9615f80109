"""Fixtures of the pipeline's tests: a recipe on tiny files, stages that take milliseconds, a way to run them."""

import dataclasses
import getpass
import json
import logging
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ammd.artifact import Manifest, list_files, publish, staging_folder, write_json
from ammd.pipeline.bundle import make_bundle
from ammd.pipeline.bundle_choice import Target
from ammd.pipeline.cli import main
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe
from ammd.pipeline.stages import STAGES
from ammd.pipeline.summary import build_summary

STAND_IN = Path(__file__).parent / "stand_in"

RECIPE = """\
name = "tiny"
seed = 7

[prepare]
teacher = "teacher"
prompts = "prompts.jsonl"
heldout = "heldout.jsonl"

[prepare.student]
kind = "depth"
layers = 1

[export]
schemes = ["gguf-f16", "gguf-q8_0"]
"""


@pytest.fixture
def recipe_path(tmp_path):
    """A recipe whose teacher and data files lie beside it."""
    return _write_recipe(tmp_path / "recipe")


def _write_recipe(folder):
    (folder / "teacher").mkdir(parents=True)
    (folder / "teacher" / "config.json").write_text("{}", encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode()
    body = len(header).to_bytes(8, "little") + header + bytes(48)
    (folder / "teacher" / "model.safetensors").write_bytes(body)
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n', encoding="utf-8")
    (folder / "heldout.jsonl").write_text('{"prompt": "c"}\n', encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The stage table with stand-ins; `stand_in.ran()` tells which stages really ran since the last call."""
    return _set_up_stand_in(tmp_path, monkeypatch)


def _set_up_stand_in(folder, monkeypatch):
    log = folder / "ran.txt"
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    monkeypatch.delenv("STAND_IN_FAULT", raising=False)
    return StandIn(log)


class StandIn:
    """Stage table and record of the stand-in stages."""

    def __init__(self, log):
        self.log = log
        self.stages = {
            name: dataclasses.replace(stage, module="stand_in_stages", inputs="Inputs")
            for name, stage in STAGES.items()
        }

    def ran(self):
        names = self.log.read_text(encoding="utf-8").split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return names

    def start(self, recipe_path, runs_dir, *options, **popen):
        """Start `ammd run` on the stand-ins in a process of its own."""
        return subprocess.Popen(
            [
                sys.executable,
                str(STAND_IN / "run_stand_in.py"),
                "run",
                str(recipe_path),
                "--runs-dir",
                str(runs_dir),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )


@pytest.fixture
def report_case(recipe_path, tmp_path):
    """What the report of a run is made of, with numbers like a real one's; each number gives another run."""
    make_case = runpy.run_path(str(Path(__file__).with_name("report_case.py")))["make_case"]
    base = build_summary(load_recipe(recipe_path), tmp_path, {})
    return lambda number=0: make_case(base, number)


@pytest.fixture
def ammd(monkeypatch, capfd):
    """Run the command line in this process; return exit code, standard output and standard error."""

    def ammd(*arguments):
        monkeypatch.setattr(sys, "argv", ["ammd", *(str(argument) for argument in arguments)])
        logger = logging.getLogger("ammd")
        handlers, level = logger.handlers[:], logger.level
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:  # what it logs to is this test's standard error, which is closed at its end
            logger.handlers[:] = handlers
            logger.setLevel(level)
        out, err = capfd.readouterr()
        return caught.value.code, out, err

    return ammd


RELEASED = "export.schemes=['gguf-f16', 'gguf-q8_0', 'gguf-q4_k_m']"


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A finished run of three files on the stand-ins, and a bundle of it: recipe, runs folder, run, bundle."""
    folder = tmp_path_factory.mktemp("released")
    recipe_path = _write_recipe(folder / "recipe")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in = _set_up_stand_in(folder, monkeypatch)
        recipe = load_recipe(recipe_path, overrides=(RELEASED,))
        summary = run_recipe(recipe, runs_dir=folder / "runs", stages=stand_in.stages)
    run = folder / "runs" / summary["run"]
    make_bundle(run, target=Target.ANDROID, out=folder / "out" / "tiny")
    return recipe_path, folder / "runs", run, folder / "out"


@pytest.fixture
def release_run(tmp_path, released, stand_in):
    """Give a copy of the finished run, judged anew where its budget is overridden."""
    recipe_path, runs, run, _ = released

    def release_run(*overrides):
        shutil.copytree(runs, tmp_path / "runs")
        recipe = load_recipe(recipe_path, overrides=(RELEASED, *overrides))
        run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages)
        assert stand_in.ran() == []
        return tmp_path / "runs" / run.parent.name / run.name

    return release_run


@pytest.fixture
def bundle(released, tmp_path):
    """A copy of the bundle's folder; its archive lies beside it."""
    shutil.copytree(released[3], tmp_path / "out")
    return tmp_path / "out" / "tiny"


@pytest.fixture
def words_of_this_machine():
    """Return what there is in some bytes of a folder's path, the home folders, the user and the host."""

    def words_of_this_machine(contents, folder):
        names = [getpass.getuser() + "@", f"/{getpass.getuser()}/", str(folder), "/home/", "/tmp/"]
        host = re.compile(rb'[\s"@/]' + re.escape(socket.gethostname().encode()) + rb'[\s":/]')  # a short one
        found = [name for name in names if name.encode() in contents]
        is_text = b"\0" not in contents
        return found + ([socket.gethostname()] if is_text and host.search(contents) else [])

    return words_of_this_machine


@pytest.fixture
def build_run():
    """Write a finished run whose scores and answers are made up."""
    return _build_run


_TEXT = "The sky is blue because air scatters blue light"


def _build_run(runs, run_id, bench, *, rouge=0.5, nll=1.0, size=1000, prompts=12, prompt="Why {}?", **more):
    """Write a finished run of two models; `rouge` and `nll` are one number, or a function of the prompt."""
    folder = runs / "mine" / run_id
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("", encoding="utf-8")
    score = [rouge if callable(rouge) else lambda _n: rouge, nll if callable(nll) else lambda _n: nll]
    models = ("student", "gguf-q8_0")
    rows = [
        {
            "model": model,
            "prompt": n,
            "rouge_l": score[0](n),
            "nll_under_teacher_nats": score[1](n),
            "response_tokens": 10 + n,
        }
        for model in models
        for n in range(prompts)
    ]
    lines = [
        {
            "prompt": prompt.format(n),
            "teacher_text": _TEXT,
            "answers": dict.fromkeys(models, more.get("answer", lambda n: f"{_TEXT} {n}")(n)),
        }
        for n in range(prompts)
    ]
    with staging_folder(folder / "evaluate") as staging:
        for name, found in (("scores", rows), ("answers", lines)):
            text = "".join(json.dumps(line) + "\n" for line in found)
            (staging / f"{name}.jsonl").write_text(text, encoding="utf-8")
        manifest = Manifest(stage="evaluate", key="k", files=list_files(staging))
        publish(staging, folder / "evaluate", manifest)
    row = {"bytes": size, "quality": {"rouge_l": score[0](0)}}
    summary = {
        "run": f"mine/{run_id}",
        "models": [{"name": "student", "path": str(folder / "student"), **row, "bench": None}],
        "artifacts": [{"name": "gguf-q8_0", **row, "bench": bench["bench"]["gguf-q8_0"]}],
        "measured_on": bench["machine"],
        "recipe": {"seed": more.get("seed", 0), "distill": {"lr": more.get("lr", 1.0), "steps": 3}},
    }
    write_json(folder / "summary.json", summary)
    return folder


@pytest.fixture
def wait_for_lines():
    """Wait until a file has so many lines, a minute or two at most."""

    def wait_for_lines(path, lines):
        deadline = time.monotonic() + 120
        while not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < lines:
            assert time.monotonic() < deadline, f"{path} did not get {lines} lines"
            time.sleep(0.05)

    return wait_for_lines
