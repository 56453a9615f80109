"""What a second phase in rounded weights is worth: against rounding the student afterwards.

From one prepared folder and one recipe, for each seed: the warm start, and from it the second phase as it is (`float`)
and once for each scheme with `distill.quantize_as`. Then each scheme's file is made of both students: of the float one
(`afterwards`) and of the one that was trained for it (`aware`). The files are judged by their own engines, which round
activations as well (metrics that begin with `file_`), and the weights that they hold by torch in float32, where
answers can be sampled too; the float student, not rounded, stands beside them. A seed changes the order of texts, what
the student writes while training, and its sampled answers.

    python benchmarks/quantization_aware.py WORK_DIR [--seeds 0 1 2] [--schemes gguf-q4_0 ...] [--prompts 320]
        [--recipe FILE] [--set KEY=VALUE]...

Finished parts in WORK_DIR are taken as they are, so an interrupted run goes on. Prints one JSON line last and writes
`benchmarks/results/quantization_aware.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from document import publish
from parts import last_step, make, parser_of, prepare, recipe_of, run, spread, training_of, write_part

if TYPE_CHECKING:
    from ammd.distill.settings import QuantizedScheme
    from ammd.pipeline.recipe import Recipe

SCHEMES = ("gguf-q4_0", "gguf-q8_0", "onnx-int4")
_KL_TEXTS, _FILE_PROMPTS = 64, 32
METRICS = (
    "kl_to_teacher_nats",
    "top1_agreement",
    "rouge_l",
    "sampled_nll_under_teacher_nats",
    "sampled_rouge_l",
    "looping_share",
)
FILE_METRICS = ("kl_to_teacher_nats", "top1_agreement", "rouge_l")


def main() -> None:
    """Train and judge what is missing, then compare."""
    prompts_help = "held-out prompts that judge weights; samples are drawn for the first half"
    parser = parser_of(__doc__, prompts=320, prompts_help=prompts_help)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    arguments = parser.parse_args()
    recipe = recipe_of(arguments)
    work: Path = arguments.work
    if arguments.part:
        write_part(arguments.part, work, partial(run_part, recipe, arguments))
        return
    make("prepared", work)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for part in ("warm", "float", *arguments.schemes, "judged/float"):
            make(f"seed{seed}/{part}", work)
        rows += rows_of(work, seed, scheme="none", arm="float")
        for scheme in arguments.schemes:
            for arm in ("afterwards", "aware"):
                make(f"seed{seed}/judged/{scheme}/{arm}", work)
                rows += rows_of(work, seed, scheme=scheme, arm=arm)
    gained = [row for scheme in arguments.schemes for row in gains(rows, scheme=scheme)]
    publish(
        "quantization_aware",
        rows + gained,
        recipe=recipe.model_dump(mode="json", include={"prepare", "distill"}),
        prompts={"weights": arguments.prompts, "files": min(arguments.prompts, _FILE_PROMPTS)},
    )


def run_part(recipe: Recipe, arguments: argparse.Namespace, folder: Path) -> None:
    """Write the part that the options name into `folder`."""
    work: Path = arguments.work
    first, *rest = arguments.part.split("/")
    if first == "prepared":
        prepare(recipe, folder)
        return
    seed = int(first.removeprefix("seed"))
    match rest:
        case ["judged", "float"]:
            judge(work, seed, folder, trained="float", scheme=None, prompts=arguments.prompts)
        case ["judged", scheme, arm]:
            trained = scheme if arm == "aware" else "float"
            judge(work, seed, folder, trained=trained, scheme=scheme, prompts=arguments.prompts)
        case [phase]:
            train(recipe, work, seed, folder, phase=phase)


def train(recipe: Recipe, work: Path, seed: int, folder: Path, *, phase: str) -> None:
    """Train the warm start, or a second phase from it, as it is (`float`) or for a scheme."""
    import torch

    scheme = phase if phase in SCHEMES else None
    settings = recipe.distill.model_copy(update={"seed": seed, "quantize_as": scheme})
    if phase == "warm":
        training = training_of(settings, work, folder, warm=None)
        training.warm(settings.warm)
        training.save(folder / "student", dtype=torch.float32)
    else:
        training = training_of(settings, work, folder, warm=work / f"seed{seed}" / "warm")
        training.second(settings.objective)
        training.save(folder / "student")  # as the distill stage saves it, and as files are made from


def judge(
    work: Path, seed: int, folder: Path, *, trained: str, scheme: QuantizedScheme | None, prompts: int
) -> None:
    """Judge a student, or the file of a scheme that is made from it and the weights that it holds."""
    from ammd.export.schemes import Scheme
    from ammd.export.single_file import export_file
    from ammd.runtime import evaluate
    from ammd.runtime.artifact_ref import ArtifactRef
    from ammd.runtime.settings import EvaluateSettings

    student = work / f"seed{seed}" / trained / "student"
    models = {"weights": student}
    if scheme:
        file = folder / ("file" if scheme == "onnx-int4" else "file.gguf")
        export_file(student, Scheme(scheme), out=file)
        save_rounded(student, folder / "weights", scheme=scheme)
        models = {"weights": folder / "weights", "file": file}
    inputs = evaluate.EvaluateInputs(
        teacher=work / "prepared" / "teacher",
        heldout=work / "prepared" / "heldout.jsonl",
        models=tuple(ArtifactRef(name=name, path=path) for name, path in models.items()),
    )
    settings = EvaluateSettings(
        prompts=prompts,
        sampled_prompts=prompts // 2,
        file_prompts=_FILE_PROMPTS,
        kl_texts=_KL_TEXTS,
        seed=seed,
    )
    evaluate.run(inputs, settings, folder)
    if scheme:
        shutil.rmtree(folder / "weights")  # half a gigabyte each, and soon made again
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def save_rounded(student: Path, folder: Path, *, scheme: QuantizedScheme) -> None:
    """Save as a float32 checkpoint what a file of `scheme` holds: by `tests/distill/test_stored_as.py` to the last bit.

    A head that the file keeps as Q6_K, which is not followed, stays float in both arms.
    """
    import torch

    from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
    from ammd.distill.stored_as import roundings_of

    model = load_model(student, dtype=torch.float32)
    with torch.no_grad():
        for parameter, rounding in roundings_of(model, scheme).items():
            parameter.copy_(rounding(parameter))
    save_checkpoint(model, load_tokenizer(student), folder)


def rows_of(work: Path, seed: int, *, scheme: str, arm: str) -> list[dict[str, Any]]:
    """Return one flat row for each metric of an arm."""
    folder = work / f"seed{seed}"
    judged = folder / "judged" / ("float" if arm == "float" else f"{scheme}/{arm}")
    quality = json.loads((judged / "quality.json").read_text(encoding="utf-8"))
    last = last_step(folder / (scheme if arm == "aware" else "float"))
    values = {"training_seconds": last["seconds"], "training_steps": last["step"]}
    values |= {metric: quality["weights"][metric] for metric in METRICS}
    if "file" in quality:
        values |= {f"file_{metric}": quality["file"][metric] for metric in FILE_METRICS}
    return [
        {"seed": seed, "scheme": scheme, "arm": arm, "metric": metric, "value": value}
        for metric, value in values.items()
    ]


def gains(rows: list[dict[str, Any]], *, scheme: str) -> list[dict[str, Any]]:
    """Return `aware` minus `afterwards` for each metric of a scheme: mean and standard deviation over the seeds."""
    values: dict[tuple[str, str, int], float] = {
        (row["metric"], row["arm"], row["seed"]): row["value"] for row in rows if row["scheme"] == scheme
    }
    found = []
    for metric in dict.fromkeys(metric for metric, _, _ in values):
        differences = [
            value - values[metric, "afterwards", seed]
            for (name, arm, seed), value in values.items()
            if (name, arm) == (metric, "aware")
        ]
        found.append(
            {
                "scheme": scheme,
                "arm": "aware",
                "minus": "afterwards",
                "metric": metric,
                "seeds": len(differences),
                "difference_mean": statistics.mean(differences),
                "difference_sd": spread(differences),
            }
        )
    return found


if __name__ == "__main__":
    run(main)
