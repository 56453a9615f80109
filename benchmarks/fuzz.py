"""Does any file, however broken, do more than be refused? Recipes, prompts, manifests, histories, headers, archives.

Each target is fuzzed by atheris (libFuzzer, guided by the coverage of our readers and of gguf's, tarfile and the like)
in a process of its own for a bounded time, from files that are right. A fault is an exception that is no `AmmdError`,
a file opened for writing outside of the case's folder, a case of more than ten seconds, or of more than 2 GiB.

`pip install atheris` first (Linux, Python 3.11 to 3.13). Writes `benchmarks/results/fuzz.json`.

Usage:
    python benchmarks/fuzz.py [--seconds 60] [--target recipe]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S, LIMIT_MIB = 10, 2048
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Fuzz every target, or the one that is asked for, and write the result file."""
    arguments = parse_arguments()
    if arguments.in_child:
        fuzz(arguments.target, arguments.seconds)
        return
    from document import kept, publish

    names = [arguments.target] if arguments.target else list(TARGETS)
    rows, _ = kept("fuzz", "target", *names)
    for name in names:
        rows.append(run_target(name, arguments.seconds))
        print(rows[-1], file=sys.stderr)
    publish("fuzz", rows, settings={}, limit_s=LIMIT_S, limit_mib=LIMIT_MIB)
    sys.exit(any(row["fault"] for row in rows))


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of files.")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--target", choices=list(TARGETS))
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_target(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own and return its row."""
    with tempfile.TemporaryDirectory(prefix="ammd-fuzz-") as folder:
        command = [sys.executable, __file__, "--in-child", "--target", name, "--seconds", str(seconds)]
        done = subprocess.run(
            command,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    said = done.stderr.decode(errors="replace")
    found = _DONE.search(said)
    fault = None if done.returncode == 0 and found else said[-3000:]
    return {
        "target": name,
        "cases": int(found[1]) if found else None,
        "seconds": int(found[2]) if found else None,
        "fault": fault,
    }


def fuzz(name: str, seconds: int) -> None:
    """Fuzz a target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["ammd", "gguf", "tomllib", "tarfile", "zipfile", "json"]):
        read, seeds = TARGETS[name]()
    from ammd.errors import AmmdError

    desk = Path(tempfile.mkdtemp())
    corpus, case = desk / "corpus", desk / "case"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    _watch_writes(case)

    def one(data: bytes) -> None:
        case.mkdir()
        with contextlib.suppress(AmmdError):
            read(data, case)
        shutil.rmtree(case)

    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={LIMIT_S}",
        f"-rss_limit_mb={LIMIT_MIB}",
        f"-max_len={max(8192, 2 * max(map(len, seeds)))}",
    ]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={desk}/", str(corpus)], one)
    atheris.Fuzz()


def _watch_writes(folder: Path) -> None:
    """End the process where a file is opened for writing, or a name given, outside of `folder`."""
    inside = f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if mode else flags & _WRITING
        elif event in ("os.rename", "os.link", "os.symlink"):
            path, writes = arguments[1], True
        else:
            return
        is_path = isinstance(path, str | bytes | os.PathLike)
        if writes and is_path and not os.path.realpath(os.fsdecode(path)).startswith(inside):
            os.write(2, f"WRITE OUTSIDE: {path!r}\n".encode())
            os._exit(99)

    sys.addaudithook(hook)


Read = Callable[[bytes, Path], object]
Target = Callable[[], tuple[Read, list[bytes]]]


def recipe() -> tuple[Read, list[bytes]]:
    """A recipe's TOML, and after its first line of `#set`, changes to it."""
    from ammd.pipeline import recipe as recipes
    from ammd.pipeline.toml_text import write_toml

    def read(data: bytes, folder: Path) -> None:
        text, *changes = data.split(b"\n#set ")
        (folder / "x.toml").write_bytes(text)
        overrides = [change.decode(errors="surrogateescape") for change in changes]
        found = recipes.load_recipe(folder / "x.toml", overrides=overrides)
        write_toml(found.model_dump(mode="json"))

    whole = Path(recipes.__file__).with_name("recipes").joinpath("quickstart.toml").read_bytes()
    return read, [
        whole,
        whole + b"\n#set distill.seed=3\n#set prepare.student={ kind = 'depth', layers = 3 }",
    ]


def manifest() -> tuple[Read, list[bytes]]:
    """`manifest.json` of a stage, of a bundle, and `summary.json`."""
    from dataclasses import asdict

    from ammd.artifact import FileRecord, Manifest, load_manifest
    from ammd.pipeline.cache import find_stage
    from ammd.pipeline.runs import read_summary

    def read(data: bytes, folder: Path) -> None:
        from ammd.errors import AmmdError

        (folder / "manifest.json").write_bytes(data)
        (folder / "summary.json").write_bytes(data)
        (folder / "a").write_bytes(b"")
        for one in (load_manifest, read_summary, lambda path: find_stage(path, "k")):
            with contextlib.suppress(AmmdError):
                one(folder)

    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    record = FileRecord(path="a", bytes=0, sha256=empty)
    whole = asdict(Manifest(stage="export", key="k", files=(record,), results={"failed_parts": ["a"]}))
    return read, [json.dumps(whole).encode()]


def prompts() -> tuple[Read, list[bytes]]:
    """JSONL of prompts, of a prepare stage's texts and of held-out ones."""
    from ammd.conversations import read_conversations
    from ammd.distill.prompts import read_examples
    from ammd.errors import AmmdError
    from ammd.runtime.heldout import load_heldout

    def read(data: bytes, folder: Path) -> None:
        path = folder / "x.jsonl"
        path.write_bytes(data)
        for one in (read_conversations, read_examples, lambda found: load_heldout(found, limit=9)):
            with contextlib.suppress(AmmdError):
                one(path)

    rows = [
        {"prompt": "a", "response": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "a", "response": "b", "prompt_ids": [1, 2], "response_ids": [3], "reference": "c"},
    ]
    return read, ["\n".join(map(json.dumps, rows)).encode()]


def gguf_header() -> tuple[Read, list[bytes]]:
    """What `ammd verify` reads of a GGUF before an engine does."""
    import gguf
    import numpy as np

    from ammd.runtime.model_file import read_model_file

    def read(data: bytes, folder: Path) -> None:
        (folder / "x.gguf").write_bytes(data)
        read_model_file(folder / "x.gguf")

    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder, "x.gguf"), "llama")
        writer.add_context_length(512)
        writer.add_token_list(["a", "b", "ä"])
        writer.add_token_scores([0.0, 1.0, 2.0])
        writer.add_tensor("token_embd.weight", np.zeros((3, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return read, [Path(folder, "x.gguf").read_bytes()]


def safetensors_header() -> tuple[Read, list[bytes]]:
    """The header of a checkpoint's weights."""
    from ammd.safetensors_header import read_headers

    def read(data: bytes, folder: Path) -> None:
        (folder / "x.safetensors").write_bytes(data)
        read_headers(folder)

    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return read, [len(header).to_bytes(8, "little") + header + bytes(4)]


def archive() -> tuple[Read, list[bytes]]:
    """A zip, a `.tar.gz` and a `.tar.zst`, by the first byte."""
    from ammd.archive import unpack
    from ammd.zstd import ZstdFile

    suffixes = (".zip", ".tar.gz", ".tar.zst")

    def read(data: bytes, folder: Path) -> None:
        path = folder / f"x{suffixes[data[0] % 3] if data else '.zip'}"
        path.write_bytes(data[1:])
        (folder / "out").mkdir()
        unpack(path, folder / "out", pick=lambda name: name, limit_bytes=1 << 20)
        for found in (folder / "out").rglob("*"):
            assert not found.is_symlink()

    tar, zipped, zst = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as opened:
        info = tarfile.TarInfo("a/b")
        info.size = 5
        opened.addfile(info, io.BytesIO(b"hello"))
    with zipfile.ZipFile(zipped, "w") as zip_opened:
        zip_opened.writestr("a/b", b"hello")
    with ZstdFile(zst, "w") as stream:
        stream.write(b"hello")
    return read, [b"\0" + zipped.getvalue(), b"\1" + tar.getvalue(), b"\2" + zst.getvalue()]


def history() -> tuple[Read, list[bytes]]:
    """The history of a runs folder, listed by a filter and in an order."""
    from ammd.pipeline.history_file import HISTORY_NAME, open_history
    from ammd.pipeline.runs_list import list_runs

    def read(data: bytes, folder: Path) -> None:
        (folder / HISTORY_NAME).write_bytes(data)
        list_runs(folder, filters=["state!=running"], sort="costs.seconds", columns=["costs.seconds"])

    with tempfile.TemporaryDirectory() as made:
        with open_history(Path(made)) as connection:
            connection.execute("INSERT INTO runs (id, run, state) VALUES (1, 'a/b', 'finished')")
            connection.execute("INSERT INTO keys (id, key) VALUES (1, 'costs.seconds')")
            connection.execute("INSERT INTO facts (key, run, value) VALUES (1, 1, 2.5)")
        seed = Path(made, HISTORY_NAME).read_bytes()
    return read, [seed]


TARGETS: dict[str, Target] = {
    "recipe": recipe,
    "manifest": manifest,
    "prompts": prompts,
    "gguf header": gguf_header,
    "safetensors header": safetensors_header,
    "archive": archive,
    "history": history,
}


if __name__ == "__main__":
    main()
