"""Every scheme of a checkpoint: size, how far from it, how fast, what it costs to make; with and without an imatrix.

    python benchmarks/export.py CHECKPOINT --name NAME --texts TRAIN.jsonl --heldout HELDOUT.jsonl
        [--schemes gguf-q4_k_m ...] [--work FOLDER]

The importance matrix is measured once, on TRAIN; HELDOUT, which neither training nor matrix has seen, says how far a
file is from the checkpoint. Each file is made, proven and timed by itself, its row is kept in the work folder, and the
file is removed, so an interrupted run goes on. Seconds include the conversion to F16 that a quantizer starts from, and
for the first scheme with a matrix its measuring.

Prints one JSON line last and writes `benchmarks/results/export.json`, leaving rows of other models and schemes there as
they are; each says which revision made it of which checkpoint.
Rows: model, scheme, imatrix, file_bytes, bits_per_weight, fallbacks, kl_nats, top1, perplexity_change,
decode_tokens_per_s, seconds, peak_rss_bytes, revision, checkpoint_sha256.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from cells import Cells
from document import kept, publish, revision
from parts import run

from ammd.artifact import hash_file, whole_record
from ammd.errors import EngineError
from ammd.export import stage as export_stage
from ammd.export.optimum_exporter import missing_exporter
from ammd.export.schemes import STANDARD_SCHEMES, Scheme, mix_of, needs_imatrix
from ammd.export.settings import ExportSettings, ImatrixSettings
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.bench import measure_artifacts
from ammd.runtime.settings import BenchSettings, VerifySettings
from ammd.runtime.verify import VerifyInputs, measure_files

BENCH = BenchSettings(
    threads=(0,),
    prompt_tokens=32,
    decode_tokens=32,
    processes=1,
    max_processes=1,
    retries=0,
    repetitions=3,
    max_repetitions=3,
    max_warmup=1,
    cold_loads=0,
    bandwidth=False,
)


def main() -> None:
    """Make, prove and time what is missing."""
    arguments = parse_arguments()
    cells = Cells(arguments.work / arguments.name)
    wanted = [
        (scheme, with_imatrix)
        for scheme in map(Scheme, arguments.schemes)
        for with_imatrix in (False, True)
        if (with_imatrix and mix_of(scheme)) or (not with_imatrix and not needs_imatrix(scheme))
    ]
    names = {f"{scheme.value}{'+imatrix' if matrix else ''}": (scheme, matrix) for scheme, matrix in wanted}
    found = cells.compute(names, lambda name: measure(arguments, *names[name]))
    rows = [{"model": arguments.name} | found[name] for name in names]
    facts = {"texts": hash_file(arguments.texts), "heldout": hash_file(arguments.heldout)}
    before, settings = kept("export", "model")
    if any(settings.get(arguments.name, facts)[key] != value for key, value in facts.items()):
        before = [row for row in before if row["model"] != arguments.name]  # of other texts
    publish("export", replaced(before, rows), settings=settings | {arguments.name: facts})


def replaced(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `before` with `rows` in the places of those that they measure anew."""
    merged = {(row["model"], row["scheme"], row["imatrix"]): row for row in before}
    merged |= {(row["model"], row["scheme"], row["imatrix"]): row for row in rows}
    return list(merged.values())


def measure(arguments: argparse.Namespace, scheme: Scheme, with_imatrix: bool) -> dict[str, Any]:
    """Return the row of one scheme; its file is gone afterwards."""
    folder = arguments.work / f"{arguments.name}-files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = ExportSettings(schemes=(scheme,), imatrix=ImatrixSettings() if with_imatrix else None)
    matrix = arguments.work / f"{arguments.name}-imatrix.gguf"
    inputs = export_stage.ExportInputs(
        checkpoint=arguments.checkpoint,
        texts=arguments.texts,
        imatrix=matrix if with_imatrix and matrix.is_file() else None,
    )
    (made,) = export_stage.run(inputs, settings, folder)["artifacts"]
    if with_imatrix and not matrix.is_file():
        shutil.copyfile(folder / export_stage.IMATRIX, matrix)
    artifact = ArtifactRef(
        name="file", path=folder / made["path"]
    )  # a name without a limit: all are measured
    proofs = measure_files(
        VerifyInputs(checkpoint=arguments.checkpoint, heldout=arguments.heldout, artifacts=(artifact,)),
        VerifySettings(texts=arguments.texts_compared, greedy_prompts=4, greedy_tokens=32),
        folder,
    )["file"]
    speed = measure_artifacts([artifact], BENCH)["file"]
    if "failure" in speed:
        raise EngineError(speed["failure"]["message"], hint=speed["failure"]["hint"])
    shutil.rmtree(folder)
    return {
        "scheme": scheme.value,
        "imatrix": with_imatrix,
        "file_bytes": made["bytes"],
        "bits_per_weight": made["bits_per_weight"],
        "fallbacks": len(made["fallbacks"]),
        "kl_nats": proofs["kl_nats"],
        "top1": proofs["top1_agreement"],
        "perplexity_change": proofs["perplexity_change"],
        "decode_tokens_per_s": speed["decode_tokens_per_s"],
        "seconds": made["seconds"],
        "peak_rss_bytes": made["peak_rss_bytes"],
        "revision": revision(),
        "checkpoint_sha256": whole_record(arguments.checkpoint).sha256,
    }


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", required=True, help="of the model in the rows")
    parser.add_argument("--texts", type=Path, required=True, metavar="TRAIN.jsonl")
    parser.add_argument("--heldout", type=Path, required=True, metavar="HELDOUT.jsonl")
    parser.add_argument("--work", type=Path, default=Path("export-work"))
    parser.add_argument("--texts-compared", type=int, default=16)
    schemes = [scheme.value for scheme in Scheme if scheme is not Scheme.GGUF_MIXED]
    made_here = [scheme for scheme in schemes if scheme not in STANDARD_SCHEMES or not missing_exporter()]
    parser.add_argument("--schemes", nargs="+", choices=schemes, default=made_here)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
