"""Is a GGUF the same model on an arm64 phone? Its token ids and distributions there against those of this machine.

llama.cpp's static libraries for arm64 run under qemu's user emulation, which computes what a processor with these
instructions would: a check of correctness, never of speed. Compared are token ids; on teacher-forced text KL(here ||
there) and the likeliest token; and greedy text made here, fed to the other: a position whose likeliest token differs is
where greedy text would part. As in a verify stage, that is explained, a near-tie, if this machine prefers its token by
no more than the largest logit difference between both. An encoder-decoder reads each prompt as its source; the text is
the target behind the first of them.

Each file and build is a cell of WORK_DIR, so that a call goes on where the one before it ended, and `--seconds` ends
one early. The last one writes `benchmarks/results/arm64.json`.

    python benchmarks/arm64.py WORK_DIR student-q8_0.gguf student-q4_k_m.gguf --what "the quickstart's student"
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ammd.artifact import hash_file
from ammd.llama_source import source_tree
from ammd.runtime.bench_child import PARAGRAPH
from ammd.runtime.divergence import row_divergences
from ammd.runtime.engine import START_TOKEN, Engine, open_engine
from ammd.runtime.limits import KL_LIMITS
from ammd.runtime.llama_tools import COMPILER, Arm64, arm64_folder, run_command
from ammd.runtime.verify import artifact_name

EMULATOR = "qemu-aarch64"
PROBES = (
    "The quick brown fox",
    " leading space, 1234567 digits and CamelCase_words",
    "Grüße aus München: naïve café — ½ €",
    "こんにちは世界 🙂🚀 привет",
    "def f(x):  return x**2  # tabs\tand   spaces",
)
GREEDY_PROMPTS = ("Water runs", "Once upon a time", "The capital of France is", "To bake bread you need")
_SOURCE = Path(__file__).with_name("arm64_logits.cpp")
_CONTEXT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Token ids, and from which of them on logits are compared; in an encoder-decoder these end the source."""

    ids: tuple[int, ...]
    start: int

    @property
    def line(self) -> str:
        """The text as `arm64_logits` reads it."""
        return f"I {self.start} " + " ".join(map(str, self.ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """Token ids, and the logits that were asked for."""

    ids: tuple[int, ...]
    logits: np.ndarray  # float32 [T, V], or [0, V]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """A position of greedy text at which the other machine would go on otherwise."""

    prompt: int
    step: int
    logit_gap: float  # by how much this machine prefers its token to the other's
    is_near_tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One file, one arm64 build."""

    isa: str
    same_token_ids: bool
    positions: int
    kl_nats: float  # mean a position
    max_kl_nats: float
    top1_agreement: float
    rms_logit_error: float
    max_logit_error: float
    apart: tuple[Parting, ...]  # of teacher-forced text: positions with another likeliest token
    greedy_texts: int
    greedy_tokens: int
    partings: tuple[Parting, ...]  # the first in each greedy text


def build_reader(build: Arm64, folder: Path) -> Path:
    """Compile `arm64_logits.cpp` against the static libraries of a build."""
    tree, libraries = source_tree(), arm64_folder(build)
    program = folder / f"arm64_logits-{build.value}"
    names = ("libllama.a", "libggml.a", "libggml-cpu.a", "libggml-base.a")
    command: list[str | Path] = [COMPILER, "-std=c++17", "-O1", "-static", "-s", "-w", "-o", program, _SOURCE]
    command += [f"-I{tree}/include", f"-I{tree}/ggml/include"]
    # pthread as a whole: a static program that finds only some of its functions crashes at its first lock.
    command += ["-Wl,--start-group", *(libraries / name for name in names), "-Wl,--end-group"]
    run_command([*command, "-Wl,--whole-archive", "-lpthread", "-Wl,--no-whole-archive"])
    return program


def read_there(program: Path, model: Path, lines: Sequence[str], *, vocab_size: int) -> list[Computed]:
    """Return what the emulated program computes for lines of texts or ids."""
    with tempfile.TemporaryDirectory(prefix="ammd-arm64-") as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        run_command([EMULATOR, program, model, "1", source, target])
        raw = target.read_bytes()
    found, place = [], 0
    while place < len(raw):
        count, rows = (int(number) for number in np.frombuffer(raw, np.int32, 2, place))
        ids = np.frombuffer(raw, np.int32, count, place + 8)
        start = place + 8 + 4 * count
        logits = np.frombuffer(raw, np.float32, rows * vocab_size, start).reshape(rows, vocab_size)
        found.append(Computed(ids=tuple(int(token) for token in ids), logits=logits))
        place = start + logits.nbytes
    return found


def read_here(engine: Engine, text: Text) -> Computed:
    """Return what this machine computes for the same text."""
    rows = [chunk.copy() for chunk in engine.logits(text.ids, start=text.start)]
    return Computed(ids=text.ids, logits=np.concatenate(rows))


def write_greedily(engine: Engine, prompt: str, *, tokens: int) -> Text:
    """Return a prompt's ids and `tokens` more, each the likeliest."""
    ids = engine.tokenize(prompt, add_special=START_TOKEN in engine.settings)
    start = len(ids) - 1
    logits = engine.prefill(ids)
    for _ in range(tokens):
        ids.append(int(logits.argmax()))
        logits = engine.decode(ids[-1])
    return Text(ids=tuple(ids), start=start)


def forced_text(engine: Engine, *, tokens: int) -> Text:
    """Return plain prose, `tokens` long; an encoder-decoder reads it as the target of the first prompt."""
    ids = engine.tokenize(PARAGRAPH * (1 + tokens // 64))[:tokens]
    if START_TOKEN not in engine.settings:
        return Text(ids=tuple(ids), start=0)
    source = engine.tokenize(GREEDY_PROMPTS[0], add_special=True)
    return Text(ids=(*source, *ids[:-1]), start=len(source) - 1)


def compare(
    engine: Engine, model: Path, program: Path, *, isa: str, tokens: int, greedy_tokens: int
) -> Parity:
    """Compare a file here with the same file there."""
    forced = forced_text(engine, tokens=tokens)
    greedy = [
        write_greedily(engine, prompt, tokens=greedy_tokens) for prompt in GREEDY_PROMPTS if greedy_tokens
    ]
    lines = [*(f"T {probe}" for probe in PROBES), *(one.line for one in (forced, *greedy))]
    there = read_there(program, model, lines, vocab_size=engine.vocab_size)
    probes, (text, *texts) = there[: len(PROBES)], there[len(PROBES) :]
    here = read_here(engine, forced)
    divergences = row_divergences(here.logits.copy(), text.logits.copy())
    differences = here.logits - text.logits
    error = float(np.abs(differences).max())
    found = [
        _partings(read_here(engine, one), other, prompt=index, error=error)[:1]
        for index, (one, other) in enumerate(zip(greedy, texts, strict=True))
    ]
    return Parity(
        isa=isa,
        same_token_ids=all(
            probe.ids == tuple(engine.tokenize(text)) for probe, text in zip(probes, PROBES, strict=True)
        ),
        positions=len(here.logits),
        kl_nats=float(divergences.mean()),
        max_kl_nats=float(divergences.max()),
        top1_agreement=float((here.logits.argmax(-1) == text.logits.argmax(-1)).mean()),
        rms_logit_error=float(np.sqrt(np.square(differences, dtype=np.float64).mean())),
        max_logit_error=error,
        apart=_partings(here, text, prompt=0, error=error),
        greedy_texts=len(greedy),
        greedy_tokens=greedy_tokens,
        partings=tuple(parting for one in found for parting in one),
    )


def _partings(here: Computed, there: Computed, *, prompt: int, error: float) -> tuple[Parting, ...]:
    """Return the positions with another likeliest token."""
    own, other = here.logits.argmax(-1), there.logits.argmax(-1)
    rows = [row for row in range(len(own)) if own[row] != other[row]]
    gaps = {row: float(here.logits[row, own[row]] - here.logits[row, other[row]]) for row in rows}
    return tuple(
        Parting(prompt=prompt, step=row, logit_gap=gaps[row], is_near_tie=gaps[row] <= error) for row in rows
    )


def measure(model: Path, build: Arm64, *, tokens: int, greedy_tokens: int) -> dict[str, Any]:
    """Return the row of a file and a build."""
    with (
        tempfile.TemporaryDirectory(prefix="ammd-arm64-") as folder,
        open_engine(model, threads=1, context_tokens=_CONTEXT_TOKENS) as engine,
    ):
        program = build_reader(build, Path(folder))
        found = compare(engine, model, program, isa=build.value, tokens=tokens, greedy_tokens=greedy_tokens)
    facts = {"file": model.name, "sha256": hash_file(model), "kl_limit_nats": KL_LIMITS[artifact_name(model)]}
    return facts | asdict(found)


def main() -> None:
    """Compare what is missing; write the result file once nothing is."""
    from cells import Cells
    from document import publish

    arguments = parse_arguments()
    ends = time.monotonic() + arguments.seconds
    cells = Cells(arguments.work)
    sizes = {"tokens": arguments.tokens, "greedy_tokens": arguments.greedy_tokens}
    wanted = {
        f"{model.stem}-{build.value}-{arguments.tokens}-{arguments.greedy_tokens}": (model, build)
        for model in arguments.models
        for build in Arm64
    }
    for name in wanted:
        if cells.get(name) is None and time.monotonic() < ends:
            cells.compute([name], lambda one: measure(*wanted[one], **sizes))
            print(name, file=sys.stderr)
    found = [cells.get(name) for name in wanted]
    if missing := found.count(None):
        print(f"{missing} of {len(found)} cells are missing", file=sys.stderr)
        return
    settings = {**sizes, "texts": len(PROBES), "what": arguments.what}
    publish("arm64", [row for row in found if row], settings=settings)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("models", type=Path, nargs="+", metavar="GGUF")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--greedy-tokens", type=int, default=24)
    parser.add_argument("--what", required=True, help="what the files are, for docs/results.md")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no cell begins after these")
    if shutil.which(EMULATOR) is None:
        parser.error(f"there is no `{EMULATOR}`: install Debian's `qemu-user`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
