"""Stages that take milliseconds: they write the files of the real ones with made-up contents.

Used where a test is about the pipeline, not about models. Imported by the stages' child processes through
PYTHONPATH. `STAND_IN_LOG` names a file that gets a line for each stage that really ran; `STAND_IN_FAULT`,
as `export:kill`, makes one stage misbehave, `distill@1:raise` only that of seed 1. `STAND_IN_SPANS` names a file that
gets a line of JSON when a stage begins and when it ends; with `STAND_IN_MEET`, as `distill:2`, a stage waits until so
many of its name are at work at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ammd.artifact import hash_file
from ammd.errors import ParityError
from ammd.progress import progress

Inputs = dict[str, Any]
NAMES = {
    "PrepareSettings": "prepare",
    "DistillSettings": "distill",
    "ExportSettings": "export",
    "VerifySettings": "verify",
    "EvaluateSettings": "evaluate",
    "BenchSettings": "bench",
}


def run(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    name = NAMES[type(settings).__name__]
    with Path(os.environ["STAND_IN_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{name}\n")
    stage, _, fault = os.environ.get("STAND_IN_FAULT", "").partition(":")
    _span("begin", name)
    _meet(name)
    results = globals()[f"_{name}"](inputs, settings, folder)
    if stage in (name, f"{name}@{getattr(settings, 'seed', None)}"):
        results |= _misbehave(fault, folder, settings) or {}
    _span("end", name)
    return results


def _span(what: str, name: str) -> None:
    if path := os.environ.get("STAND_IN_SPANS"):
        facts = {
            "what": what,
            "stage": name,
            "pid": os.getpid(),
            "cpus": sorted(os.sched_getaffinity(0)),
            "threads": os.environ["OMP_NUM_THREADS"],
            "node": os.environ.get("RAY_RAYLET_PID"),  # of the cluster that it is part of
        }
        with Path(path).open("ab", buffering=0) as log:
            log.write(json.dumps(facts).encode() + b"\n")


def _meet(name: str) -> None:
    stage, _, count = os.environ.get("STAND_IN_MEET", "").partition(":")
    deadline = time.monotonic() + 60
    while stage == name:
        lines = Path(os.environ["STAND_IN_SPANS"]).read_text(encoding="utf-8").splitlines()
        if sum(f'"begin", "stage": "{name}"' in line for line in lines) >= int(count):
            return
        assert time.monotonic() < deadline, "the others did not come"
        time.sleep(0.02)


def _misbehave(fault: str, folder: Path, settings: Any) -> dict[str, Any] | None:
    (folder / "half").write_text("written before the fault", encoding="utf-8")
    return FAULTS[fault](settings) if fault else None


def _raise(error: Exception) -> None:
    raise error


def _lack_memory_on_the_cpu(_settings: Any) -> None:
    import torch

    torch.empty(1 << 60)


def _lack_memory_on_the_gpu(_settings: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _fill_the_disk(_settings: Any) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        stream.write("does not fit")


def _edit(settings: Any) -> None:
    with Path(settings.prompts).open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "later"}\n')


def _hold(_settings: Any) -> None:
    """Wait until the test lets go."""
    (holding := Path(os.environ["STAND_IN_LOG"]).with_name("holding")).touch()
    while not holding.with_name("go").exists():
        time.sleep(0.05)


def _compute(_settings: Any) -> None:
    """Take half a second here, and half a second in a process of its own."""
    code = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    before = time.process_time()
    while time.process_time() < before + 0.5:
        pass


def _sleep(_settings: Any) -> None:
    """Sleep until somebody ends it, with a process beside it; the files say that they may be ended now."""
    grandchild = os.fork()
    who = "child" if grandchild else "grandchild"
    Path(os.environ["STAND_IN_LOG"]).with_name(f"{who}.pid").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)
    sys.exit(1)


FAULTS: dict[str, Callable[[Any], dict[str, Any] | None]] = {
    "raise": lambda _: _raise(ParityError("`x` differs", hint="look at it", path="x", expected=1)),
    "unexpected": lambda _: _raise(ZeroDivisionError("by nought")),
    "memory": lambda _: _raise(MemoryError()),
    "cpu-memory": _lack_memory_on_the_cpu,
    "gpu-memory": _lack_memory_on_the_gpu,
    "full-disk": _fill_the_disk,
    # A library's own error, with the system's text in it.
    "full-disk-elsewhere": lambda _: _raise(RuntimeError("No space left on device (os error 28)")),
    "map": lambda _: os.kill(os.getpid(), signal.SIGBUS),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda _: os._exit(9),
    "print": lambda _: print("chatter on standard output"),
    "part": lambda _: {"failed_parts": ["gguf-f16, 1 thread"]},
    "compute": _compute,
    "edit": _edit,
    "hold": _hold,
    "sleep": _sleep,
}


def _checkpoint(folder: Path, *, weights: int, value: int = 0) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}}
    ).encode()
    body = len(header).to_bytes(8, "little") + header + bytes([value]) * (4 * weights)
    (folder / "model.safetensors").write_bytes(body)


def _prepare(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    _checkpoint(folder / "teacher", weights=12)
    _checkpoint(folder / "student", weights=8)
    lines = len(Path(settings.prompts).read_text(encoding="utf-8").splitlines())
    (folder / "train.jsonl").write_text(
        f'{{"prompts": {lines}, "seed": {settings.seed}}}\n', encoding="utf-8"
    )
    (folder / "heldout.jsonl").write_text('{"prompt": "p", "response": "r"}\n', encoding="utf-8")
    return {"prompts": lines, "generated_tokens": 30}


def _distill(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    kept = Path(inputs["resume"]) / "kept"
    with Path(os.environ["STAND_IN_LOG"]).with_name("resumed.txt").open("a", encoding="utf-8") as log:
        log.write(f"{kept.exists()}\n")
    kept.parent.mkdir(exist_ok=True)
    kept.touch()
    assert (Path(inputs["prepared"]) / "train.jsonl").is_file()
    _checkpoint(folder / "warm", weights=8)
    _checkpoint(folder / "student", weights=8, value=settings.seed)
    rows = [
        {"phase": "warm", "step": 1, "seconds": 1.0, "loss": 2.0, "kl_nats": 1.0},
        {"phase": "ammd", "step": 2, "seconds": time.time() % 100, "loss": 1.0, "d_off": 0.5, "d_on": 0.4},
    ]
    (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with progress("distill warm", 4) as report:
        report(1)
        report(2, "loss 2.0")
    return {"steps": 2, "generated_tokens": 12, "trained_tokens": 40}


def _export(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    artifacts = []
    for scheme in settings.schemes:
        path = folder / f"{scheme}.gguf"
        path.write_text(f"weights as {scheme}", encoding="utf-8")
        artifacts.append(
            {
                "name": str(scheme),
                "format": "gguf",
                "scheme": str(scheme),
                "path": path.name,
                "bytes": path.stat().st_size,
                "sha256": hash_file(path),
                "bits_per_weight": 8.5,
                "fallbacks": [
                    {
                        "tensor": f"blk.{n}.ffn_up.weight",
                        "asked": "Q4_K",
                        "stored": "Q5_0",
                        "row_weights": 576,
                    }
                    for n in range(2)
                ],
                "seconds": 1.5,
                "peak_rss_bytes": 3 << 20,
            }
        )
    imatrix = {"path": "student-imatrix.gguf", "sha256": "1" * 64, "matrices": 7, "tokens": 99}
    return {"artifacts": artifacts, "imatrix": imatrix}


def _verify(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    return {
        "parity": {
            row["name"]: {"kl_nats": 1e-5, "faults": [], "sha256": hash_file(Path(row["path"]))}
            for row in inputs["artifacts"]
        }
    }


def _evaluate(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    names = [row["name"] for row in inputs["models"]]
    answers = {
        "prompt": "What <b>is</b> it?",
        "teacher_text": "It.",
        "answers": {name: f"It is <i>{name}</i>." for name in names},
    }
    (folder / "answers.jsonl").write_text(json.dumps(answers) + "\n", encoding="utf-8")
    scores = [
        {"model": name, "prompt": 0, "rouge_l": 0.4, "nll_under_teacher_nats": 1.5, "response_tokens": 4}
        for name in names
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores), encoding="utf-8")
    quality = {"kl_to_teacher_nats": 0.5, "rouge_l": 0.4, "repetition": 0.0, "nll_under_teacher_nats": 1.5}
    results: dict[str, Any] = {"quality": dict.fromkeys(names, quality)}
    if settings.tasks:
        asked = {"version": 1, "kind": "instruction", "split": "test", "rows": 2, "seeds": [0, 1]}
        asked |= {"task_sha256": "0" * 64, "rows_sha256": "1" * 64}
        score = settings.answer_tokens / 256
        numbers = {"metrics": {"rouge_l": {"value": score, "low": score / 2, "high": score * 2}}}
        results["tasks"] = {Path(task).stem: asked for task in settings.tasks}
        lines = [
            {"model": name, "task": task, "row": row, "seed": seed, "rouge_l": score}
            for name in names
            for task in results["tasks"]
            for row in (1, 2)
            for seed in (0, 1)
        ]
        (folder / "task_rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        results["task_scores"] = {
            name: {Path(task).stem: numbers for task in settings.tasks} for name in names
        }
    return results


def _bench(inputs: Inputs, settings: Any, folder: Path) -> dict[str, Any]:
    speed = {"decode_tokens_per_s": 100.0, "ttft_s": 0.05, "peak_rss_bytes": 2**28}
    return {"bench": {row["name"]: speed for row in inputs["artifacts"]}}
