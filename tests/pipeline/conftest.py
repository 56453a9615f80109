"""Fixtures of the pipeline's tests: a recipe on tiny files, stages that take milliseconds, a way to run them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ammd.pipeline.cli import main
from ammd.pipeline.stages import STAGES

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
    folder = tmp_path / "recipe"
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
    log = tmp_path / "ran.txt"
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
def ammd(monkeypatch, capfd):
    """Run the command line in this process; return exit code, standard output and standard error."""

    def ammd(*arguments):
        monkeypatch.setattr(sys, "argv", ["ammd", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return caught.value.code, out, err

    return ammd
