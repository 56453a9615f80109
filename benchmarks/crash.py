"""Does a run come to the same end, however often it is killed, on a disk that fills up, and beside itself?

A small but real run: a random llama of four layers distilled into two, with a snapshot after every step; GGUF and ONNX
made, proven, judged and measured by the real stages. It is made once undisturbed. Then

- killed: runs in folders of their own are killed (SIGKILL) at moments drawn over the undisturbed run's time, some of
  them several times, until there are `KILLS` of them. A moment is a stage and the seconds since it began, so that other
  work on the machine moves no kill. Killed is `ammd` itself, a process below it, `ammd` and its stage at once, or all;
- full disk: the disk of the run's folder is filled up to the last so many KiB when a stage begins, and freed when
  `ammd` has ended (a tmpfs, which only root can mount);
- two at once: the same recipe is run by two processes, one of them killed or not.

Each ends with as many `ammd run` as it takes. What then has to be the same as in the undisturbed run: the bytes of
every trained checkpoint, so the student's weights, and of every exported file.

Every run is kept in WORK_DIR, so that a call goes on where the one before it ended, and `--seconds` ends a call early;
calls with different `--only` share the work. The last one writes `benchmarks/results/crash.json`.

Usage:
    python benchmarks/crash.py WORK_DIR [--seconds 60] [--only killed]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from cells import Cells, Result
from document import publish
from tiny_teacher import build_tiny_teacher

from ammd.artifact import hash_file

KILLS, KILLS_A_RUN, SEED = 60, 5, 7
VICTIMS = ("ammd", "child", "ammd and stage", "all")
STAGES = ("prepare", "distill", "export", "verify", "evaluate", "bench")
DISK_MIB, LEFT_KIB = 160, (0, 64, 1024)  # above what `ammd` wants to see free before it begins
FILLED_AT = ("prepare", "distill", "export")
TWO_AT_ONCE = ("nobody", "first", "second")  # is killed
ATTEMPTS = 12  # after which a run is given up
RECIPE = """\
name = "small"
[prepare]
teacher = "teacher"
prompts = "prompts.jsonl"
heldout = "heldout.jsonl"
response_tokens = 8
student = { kind = "depth", layers = 2 }
[distill]
batch_size = 4
warm = { steps = 12 }
objective = { kind = "ammd", steps = 12, student_share = 0.5 }
[export]
schemes = ["gguf-q8_0", "onnx-int4"]
[verify]
texts = 1
greedy_prompts = 1
greedy_tokens = 2
[evaluate]
prompts = 1
file_prompts = 1
kl_texts = 1
answer_tokens = 2
[bench]
threads = [1]
prompt_tokens = 8
decode_tokens = 4
processes = 1
max_processes = 1
retries = 0
repetitions = 1
max_repetitions = 1
max_warmup = 1
cold_loads = 0
bandwidth = false
"""


def main() -> None:
    """Run what is missing; write the result file once nothing is."""
    arguments = parse_arguments()
    ends = time.monotonic() + arguments.seconds
    bench = Bench(arguments.work.resolve())
    cells = Cells(bench.work / "cells")
    while (name := next_cell(cells, arguments.only)) and time.monotonic() < ends:
        cells.compute([name], bench.compute)
        print(name, cells.get(name), file=sys.stderr)
    if missing := next_cell(cells):
        print(f"{missing} and maybe others are missing", file=sys.stderr)
        if not arguments.so_far:
            return
    rows = [row for cell in finished(cells) for row in cell["rows"]]
    whole = cells.get("undisturbed")
    publish("crash", rows, settings=settings(), undisturbed_s=whole["seconds"] if whole else None)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Kill small runs and compare what they come to.")
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no run begins after these")
    parser.add_argument("--only", default="", help="runs whose name begins so, as `killed`, `full` or `two`")
    parser.add_argument("--so-far", action="store_true", help="write what there is, though runs are missing")
    return parser.parse_args()


def settings() -> dict[str, Any]:
    """Return what was drawn from, for the result file."""
    return {
        "kills": KILLS,
        "seed": SEED,
        "kills_a_run": KILLS_A_RUN,
        "victims": VICTIMS,
        "disk_mib": DISK_MIB,
        "recipe": RECIPE,
    }


def finished(cells: Cells) -> Iterator[Result]:
    """Yield the finished cells, in their order."""
    names = ["undisturbed", *cell_names()]
    yield from (cell for name in names if (cell := cells.get(name)) is not None)


def cell_names() -> Iterator[str]:
    """Yield the names of all cells that may be wanted but the undisturbed one."""
    yield from (f"killed-{number:02}" for number in range(3 * KILLS))
    if can_mount():
        yield from (f"full-{stage}-{left:03}" for stage in FILLED_AT for left in LEFT_KIB)
    yield from (f"two-{killed}" for killed in TWO_AT_ONCE)


def next_cell(cells: Cells, only: str = "") -> str | None:
    """Return the next cell to compute; None if all are there. Runs that ended before a kill do not count."""
    if cells.get("undisturbed") is None:
        return "undisturbed"
    kills = 0
    for name in cell_names():
        if not name.startswith(only):
            continue
        cell = cells.get(name)
        if name.startswith("killed") and cell is None and kills >= KILLS:
            continue
        if cell is None:
            return name
        kills += sum(row["kind"] == "killed" for row in cell["rows"])
    return None


class Bench:
    """The folders of the runs, and what the undisturbed one came to."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.inputs = work / "inputs"
        if not (self.inputs / "small.toml").exists():
            shutil.rmtree(self.inputs, ignore_errors=True)
            build_tiny_teacher(self.inputs / "teacher")
            write_lines(self.inputs / "prompts.jsonl", 16, "say the number {} and the word the")
            write_lines(self.inputs / "heldout.jsonl", 3, "held out: the number {}")
            (self.inputs / "small.toml").write_text(RECIPE, encoding="utf-8")

    def compute(self, name: str) -> Result:
        """Make the run of a cell and compare it."""
        runs = self.work / "runs" / name
        shutil.rmtree(runs, ignore_errors=True)
        if name == "undisturbed":
            return self._undisturbed(runs)
        kind, _, rest = name.partition("-")
        compute = {"killed": self._killed, "full": self._full, "two": self._two}[kind]
        return compute(rest, runs)

    def _undisturbed(self, runs: Path) -> Result:
        started = time.monotonic()
        run = Run(self.inputs, runs)
        begun = {stage: run.wait_for_stage(stage) - started for stage in STAGES}
        if run.wait():
            raise RuntimeError(run.said())
        seconds = time.monotonic() - started
        return {"rows": [], "seconds": seconds, "begun": begun, "files": files_of(runs)}

    def _killed(self, number: str, runs: Path) -> Result:
        draw = random.Random(SEED * 1000 + int(number))
        whole = self._whole()
        moments = sorted(draw.uniform(0, whole["seconds"]) for _ in range(KILLS_A_RUN))
        rows = []
        for moment in moments:
            stage, into = place_of(moment, whole["begun"])
            victim = draw.choice(VICTIMS)
            run = Run(self.inputs, runs)
            if run.is_over_before(stage, into):
                continue
            at = run.stage
            killed = run.kill(victim, draw)
            code = run.wait()
            rows.append(
                {
                    "kind": "killed",
                    "moment_s": moment,
                    "stage": at,
                    "victim": victim,
                    "killed": killed,
                    "exit": code,
                }
            )
        return self._finished(runs, rows)

    def _full(self, rest: str, runs: Path) -> Result:
        stage, _, left = rest.partition("-")
        with small_disk(runs):
            run = Run(self.inputs, runs)
            run.wait_for_stage(stage)
            ballast = fill(runs, left_bytes=int(left) * 1024)
            code, said = run.wait(), run.said()
            ballast.unlink()
            last = [line for line in said.splitlines() if line.startswith("error: ")]
            row = {"kind": "full disk", "stage": stage, "left_kib": int(left), "exit": code}
            row["error"] = re.sub(r"`[^`]*`", "`…`", last[-1]) if last else None
            row["clear"] = code == 0 or (code == 3 and len(last) == 1 and "Traceback" not in said)
            return self._finished(runs, [row])

    def _two(self, killed: str, runs: Path) -> Result:
        first, second = Run(self.inputs, runs), Run(self.inputs, runs)
        if killed != "nobody":
            holder, other = (first, second) if first.wait_for_any_stage(second) else (second, first)
            victim = holder if killed == "first" else other
            victim.kill("ammd", random.Random(SEED))
        codes = sorted((first.wait(), second.wait()))
        return self._finished(runs, [{"kind": "two at once", "killed": killed, "exit": codes}])

    def _finished(self, runs: Path, rows: list[dict[str, Any]]) -> Result:
        """Run until it ends well and say in each row whether all is as it should be."""
        attempts = 0
        for _ in range(ATTEMPTS):
            attempts += 1
            run = Run(self.inputs, runs)
            if run.wait() == 0:
                break
        else:
            raise RuntimeError(run.said())
        expected, found = self._whole()["files"], files_of(runs)
        other = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        left = sorted(path.name for path in run_folder(runs).glob(".*") if path.name != ".lock")
        for row in rows:
            row |= {"identical": not other, "differ": other, "left": left, "attempts": attempts}
        if not other:
            shutil.rmtree(runs / "small", ignore_errors=True)
        return {"rows": rows}

    def _whole(self) -> Result:
        found = Cells(self.work / "cells").get("undisturbed")
        assert found is not None
        return found


class Run:
    """One `ammd run` in a process of its own."""

    def __init__(self, inputs: Path, runs: Path) -> None:
        command = [sys.executable, "-P", "-c", "from ammd.pipeline.cli import main; main()"]
        self._process = subprocess.Popen(
            [*command, "run", str(inputs / "small.toml"), "--runs-dir", str(runs)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "AMMD_SNAPSHOT_SECONDS": "0", "AMMD_PROGRESS": "off"},
        )
        self._lines: list[str] = []
        self._new: queue.Queue[tuple[float, str] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.stage = "start"

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            self._new.put((time.monotonic(), line))
        self._new.put(None)

    def said(self) -> str:
        """Return its standard error so far."""
        return "".join(self._lines)

    def wait(self) -> int:
        """Return its exit code."""
        code = self._process.wait()
        self._reader.join()
        return code

    def wait_for_stage(self, stage: str, *, until: float = float("inf")) -> float:
        """Return when `stage` or a later one began; infinity if the run ends or `until` passes before."""
        wanted = STAGES[STAGES.index(stage) :] if stage in STAGES else STAGES
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return float("inf")
            try:
                item = self._new.get(timeout=min(left, threading.TIMEOUT_MAX))
            except queue.Empty:
                return float("inf")
            if item is None:
                self._new.put(None)  # for whoever asks next
                return float("inf")
            when, line = item
            if found := re.fullmatch(r"(\w+) …\n", line):
                self.stage = found[1]
                if found[1] in wanted:
                    return when

    def wait_for_any_stage(self, other: Run) -> bool:
        """Return whether this one is at work, and not `other`, as soon as one of them is."""
        while True:
            for run, is_this in ((self, True), (other, False)):
                if run.wait_for_stage(STAGES[0], until=time.monotonic() + 0.05) < float("inf"):
                    return is_this

    def is_over_before(self, stage: str, into: float) -> bool:
        """Sleep until the run has been so many seconds in `stage`, or begun a later one; tell whether it has ended."""
        began = time.monotonic() if stage == "start" else self.wait_for_stage(stage)
        if began < float("inf"):
            later = STAGES[STAGES.index(self.stage) + 1 :] if self.stage in STAGES else STAGES
            if later:
                self.wait_for_stage(later[0], until=began + into)
            else:
                time.sleep(max(0.0, began + into - time.monotonic()))
        return self._process.poll() is not None

    def kill(self, victim: str, draw: random.Random) -> str:
        """Kill, and return what was."""
        main = psutil.Process(self._process.pid)
        below = main.children(recursive=True)
        chosen = {
            "ammd": [main],
            "child": [draw.choice(below)] if below else [main],
            "ammd and stage": [main, *main.children()],
            "all": [main, *below],
        }[victim]
        names = [name_of(process) for process in chosen]
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        return ", ".join(sorted(set(names)))


def name_of(process: psutil.Process) -> str:
    """Return the module that a process of ours runs, or its program."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        found = [word for word in words if word.startswith("ammd.") and word != "ammd.parent_death"]
        return found[0] if found else "ammd"
    return "gone"


def place_of(moment: float, begun: Mapping[str, float]) -> tuple[str, float]:
    """Return the stage that runs at a moment of the undisturbed run, and for how long it has."""
    earlier = [(stage, start) for stage, start in begun.items() if start <= moment]
    stage, start = earlier[-1] if earlier else ("start", 0.0)
    return stage, moment - start


def run_folder(runs: Path) -> Path:
    """Return the folder of the only run."""
    (folder,) = (runs / "small").iterdir()
    return folder


def files_of(runs: Path) -> dict[str, str]:
    """Return the hash of every trained checkpoint's and exported file of the only run."""
    folder = run_folder(runs)
    made = [
        path for part in ("distill/warm", "distill/student", "export") for path in (folder / part).rglob("*")
    ]
    return {
        str(path.relative_to(folder)): hash_file(path)
        for path in sorted(made)
        if path.is_file() and path.name != "manifest.json"  # which has the seconds it took
    }


def write_lines(path: Path, count: int, text: str) -> None:
    """Write a file of prompts."""
    rows = ({"prompt": text.format(number)} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def can_mount() -> bool:
    """Tell whether this user may mount a disk."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, *, left_bytes: int) -> Path:
    """Fill the disk of `folder` up to so many bytes with one file, and return it."""
    path = folder / "ballast"
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(folder).free - left_bytes))
    return path


if __name__ == "__main__":
    main()
