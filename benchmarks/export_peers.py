"""Our exports beside what a user would do by hand with the same libraries: bytes, KL, seconds.

    python benchmarks/export_peers.py CHECKPOINT --heldout HELDOUT.jsonl [--work FOLDER] [--rounds 5]
        [--peers llama.cpp onnxruntime-genai optimum]

By hand: llama.cpp's `convert_hf_to_gguf.py` and `llama-quantize`, built from the same tree; onnxruntime-genai's builder
as it stands; `optimum-cli export onnx`. Ours and theirs run in turn, the order alternating from round to round, each
step in fresh processes; seconds are from the checkpoint to the file. Proofs are timed by none. KL and top-1 agreement
are against the checkpoint on held-out text. A file made by hand that fails a proof says so in `theirs_fault`, and its
KL is measured with the tokenizer of ours. The optimum pair needs the extra `optimum`, so an environment of its
own; rows of other peers in the result file are left as they are.

Prints one JSON line last and writes `benchmarks/results/export_peers.json`. Rows: peer, scheme, rounds, and for either
side (`ours_`, `theirs_`) file_bytes, kl_nats, top1, seconds with its smallest and largest; ratio of the medians.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Cells
from document import kept, publish
from parts import run

from ammd.artifact import whole_record
from ammd.errors import ParityError
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.settings import OnnxSettings
from ammd.export.to_gguf import write_gguf
from ammd.export.to_onnx import builder_options, write_onnx
from ammd.export.to_standard_onnx import write_standard_onnx
from ammd.llama_source import CONVERTER, source_tree
from ammd.machine import available_cores
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.llama_tools import native_tool, run_command
from ammd.runtime.settings import VerifySettings
from ammd.runtime.verify import VerifyInputs, measure_files

Make = Callable[[Path], Path]  # fills an empty folder and returns the file, or folder, that a user would ship

# As the builder quantizes when it is told nothing but `-p int4`.
PLAIN = OnnxSettings(algorithm="mlas", symmetric=True, head="int4", sensitive_layers="int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One scheme, made by us and by hand."""

    peer: str
    scheme: str
    ours: Make
    theirs: Make


def main() -> None:
    """Measure what is missing."""
    arguments = parse_arguments()
    cells = Cells(arguments.work / "cells")
    for peer in arguments.peers:
        pairs = {pair.scheme: pair for pair in PAIRS[peer](arguments.checkpoint.resolve())}
        found = cells.compute(pairs, lambda scheme, pairs=pairs: measure(pairs[scheme], arguments))  # type: ignore[misc]
        others, settings = kept("export_peers", "peer", peer)
        rows = [{"peer": peer, "scheme": scheme} | found[scheme] for scheme in pairs]
        facts = {"checkpoint": arguments.checkpoint.name, "heldout": arguments.heldout.name}
        publish("export_peers", others + rows, settings=settings | {peer: facts})


def measure(pair: Pair, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one scheme."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    sides = {"ours": pair.ours, "theirs": pair.theirs}
    made: dict[str, Path] = {}
    for number in range(arguments.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            folder = arguments.work / side
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            started = time.perf_counter()
            made[side] = sides[side](folder)
            seconds[side].append(time.perf_counter() - started)
        print(f"{pair.scheme}: round {number + 1} of {arguments.rounds}", file=sys.stderr)
    row: dict[str, Any] = {"rounds": arguments.rounds}
    row |= {f"ours_{key}": value for key, value in quality(made["ours"], arguments).items()}
    try:
        theirs = quality(made["theirs"], arguments)
    except ParityError as error:
        row["theirs_fault"] = str(error)
        for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):
            shutil.copyfile(made["ours"] / name, made["theirs"] / name)
        theirs = quality(made["theirs"], arguments)
    row |= {f"theirs_{key}": value for key, value in theirs.items()}
    for side in made:
        row |= {
            f"{side}_seconds": statistics.median(seconds[side]),
            f"{side}_seconds_min": min(seconds[side]),
            f"{side}_seconds_max": max(seconds[side]),
        }
    row["ratio"] = row["ours_seconds"] / row["theirs_seconds"]
    return row


def quality(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return bytes, KL and top-1 agreement of a file."""
    artifact = ArtifactRef(name="file", path=path)  # a name without a limit: it is only measured
    proofs = measure_files(
        VerifyInputs(checkpoint=arguments.checkpoint, heldout=arguments.heldout, artifacts=(artifact,)),
        VerifySettings(texts=16, greedy_prompts=4, greedy_tokens=32),
        path.parent,
    )["file"]
    return {
        "file_bytes": whole_record(path).bytes,
        "kl_nats": proofs["kl_nats"],
        "top1": proofs["top1_agreement"],
    }


def llama_cpp_pairs(checkpoint: Path) -> list[Pair]:
    """Return what llama.cpp's script and quantizer make."""
    script = source_tree() / CONVERTER

    def ours(type_name: str) -> Make:
        def make(folder: Path) -> Path:
            write_gguf(checkpoint, folder / "f16.gguf", name=checkpoint.name)
            if type_name == "F16":
                return folder / "f16.gguf"
            quantize_gguf(folder / "f16.gguf", folder / "quantized.gguf", type_name=type_name)
            return folder / "quantized.gguf"

        return make

    def theirs(type_name: str) -> Make:
        quantizer = native_tool("llama-quantize")

        def make(folder: Path) -> Path:
            source, target = folder / "f16.gguf", folder / "quantized.gguf"
            run_command([sys.executable, script, checkpoint, "--outfile", source, "--outtype", "f16"])
            if type_name == "F16":
                return source
            run_command([quantizer, source, target, type_name, str(available_cores())])
            return target

        return make

    return [
        Pair(peer="llama.cpp", scheme=f"gguf-{name.lower()}", ours=ours(name), theirs=theirs(name))
        for name in ("F16", "Q8_0", "Q4_K_M")
    ]


def genai_pairs(checkpoint: Path) -> list[Pair]:
    """Return what the builder makes: with its own choices, and with ours given by hand."""

    def ours(precision: str, settings: OnnxSettings) -> Make:
        def make(folder: Path) -> Path:
            write_onnx(checkpoint, folder / "onnx", precision=precision, settings=settings)
            return folder / "onnx"

        return make

    def theirs(precision: str, options: tuple[str, ...]) -> Make:
        def make(folder: Path) -> Path:
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint]
            paths = ["-o", folder / "onnx", "-c", folder / "cache"]
            extra = ["--extra_options", *options] if options else []
            run_command([*command, *paths, "-p", precision, "-e", "cpu", *extra])
            return folder / "onnx"

        return make

    default = OnnxSettings()
    wanted = {
        "onnx-int4": (default, builder_options("int4", default)),
        "onnx-int4 plain": (PLAIN, ()),
        "onnx-int8": (default, builder_options("int8", default)),
        "onnx-fp32": (default, ()),
    }
    return [
        Pair(
            peer="onnxruntime-genai",
            scheme=scheme,
            ours=ours(scheme.split("-")[1].split()[0], settings),
            theirs=theirs(scheme.split("-")[1].split()[0], options),
        )
        for scheme, (settings, options) in wanted.items()
    ]


def optimum_pairs(checkpoint: Path) -> list[Pair]:
    """Return what optimum's command line makes."""

    def ours(folder: Path) -> Path:
        write_standard_onnx(checkpoint, folder / "onnx")
        return folder / "onnx"

    def theirs(folder: Path) -> Path:
        command = [Path(sys.executable).parent / "optimum-cli", "export", "onnx", "--model", checkpoint]
        run_command([*command, "--task", "text-generation-with-past", folder / "onnx"])
        return folder / "onnx"

    return [Pair(peer="optimum", scheme="onnx-standard-fp32", ours=ours, theirs=theirs)]


PAIRS: dict[str, Callable[[Path], list[Pair]]] = {
    "llama.cpp": llama_cpp_pairs,
    "onnxruntime-genai": genai_pairs,
    "optimum": optimum_pairs,
}


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--heldout", type=Path, required=True, metavar="HELDOUT.jsonl")
    parser.add_argument("--work", type=Path, default=Path("export-peers-work"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peers", nargs="+", choices=sorted(PAIRS), default=["llama.cpp", "onnxruntime-genai"]
    )
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
