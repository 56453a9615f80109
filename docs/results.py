"""Write docs/results.md and its plots from the files in benchmarks/results.

`python docs/results.py` writes; with `--check` nothing is written, and the exit code says whether the page on disk is
the one that would be. No number on the page is typed in.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_parts import difference, table
from results_of_bench import (
    agreement_part,
    arm64_part,
    lm_evaluation_part,
    projection_part,
    run_to_run_part,
)
from results_of_survival import crash_part, fuzz_part
from results_of_tasks import choices_part, tasks_part
from results_of_training import quantization_aware_part, second_phase_part, step_part

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parent / "benchmarks" / "results"
MADE = "<!-- Made by docs/results.py from benchmarks/results; `make docs` writes it anew. -->\n\n"

Row = Mapping[str, Any]
METRICS = {
    "own_nll_nats": "NLL under the teacher, own samples",
    "own_tv": "TV, own samples",
    "own_jsd_nats": "JSD, own samples",
    "teacher_kl_nats": "KL, teacher's samples",
    "teacher_tv": "TV, teacher's samples",
    "teacher_jsd_nats": "JSD, teacher's samples",
}
REAL_METRICS = {
    **METRICS,
    "own_reverse_kl_nats": "KL to the teacher, own samples",
    "rouge_l_teacher": "ROUGE-L to the teacher, greedy",
    "sampled_rouge_l_teacher": "ROUGE-L to the teacher, samples",
    "rouge_l_reference": "ROUGE-L to references, greedy",
}
BYTE_METRICS = {
    "teacher_nats_per_byte": "student's nats a byte of the teacher's texts",
    "own_nats_per_byte": "teacher's nats a byte of the student's samples",
}
HIGHER_IS_BETTER = {"rouge_l_teacher", "sampled_rouge_l_teacher", "rouge_l_reference"}
BUDGETS = {"steps": "At equal steps", "seconds": "At equal seconds"}


def main(arguments: list[str]) -> int:
    """Write or check the page; return 1 if a check found it out of date."""
    objectives = read("objectives")
    parts = [
        *objectives_part(objectives),
        *real_part(objectives),
        *ablation_part(read("ablation")),
        *tasks_part(read("tasks")),
        *choices_part(read("task_choices")),
        *cross_tokenizer_part(read("cross_tokenizer")),
        *second_phase_part(read("second_phase")),
        *quantization_aware_part(read("quantization_aware")),
        *step_part(read("step")),
        *export_part(read("export")),
        *peers_part(read("export_peers")),
        *agreement_part(read("agreement")),
        *lm_evaluation_part(read("lm_evaluation")),
        *projection_part(read("projection")),
        *arm64_part(read("arm64")),
        *run_to_run_part(read("run_to_run")),
        *crash_part(read("crash")),
        *fuzz_part(read("fuzz")),
    ]
    page = MADE + "\n\n".join(parts) + "\n"
    path = FOLDER / "results.md"
    if "--check" in arguments:
        if path.is_file() and path.read_text(encoding="utf-8") == page:
            return 0
        sys.stderr.write("docs/results.md is out of date: run `make docs`\n")
        return 1
    path.write_text(page, encoding="utf-8")
    for budget in BUDGETS:
        small = [row for row in objectives["rows"] if row["setting"] == "small"]
        plot(small, budget, FOLDER / f"objectives-{budget}.svg")
    return 0


def read(name: str) -> dict[str, Any]:
    """Return a result file."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def objectives_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield the paragraphs and tables of the comparison of methods."""
    rows: Sequence[Row] = [row for row in document["rows"] if row["setting"] == "small"]
    facts = document["settings"]["small"]
    reference = next(row["method"] for row in rows if "minus" in row)
    yield "# Results"
    yield (
        "All methods on one harness: same texts, warm start, optimizer, batch, rollouts and loss code; only the\n"
        "objective differs. Lower is better, but for ROUGE-L. Each number is the mean over seeds with the standard\n"
        "deviation between them; each learning rate was chosen on other prompts and another seed by the sum of both\n"
        "Jensen-Shannon distances."
    )
    yield "## Small setting: characters of a novel"
    yield (
        "`python benchmarks/objectives.py` (`benchmarks/character_level.py` has teacher, student and texts). "
        f"{facts['steps']} steps from a shared\nwarm start; {describe(rows, facts)}."
    )
    for budget, title in BUDGETS.items():
        judged = [row for row in rows if row.get("budget") == budget and "minus" not in row]
        yield f"### {title}"
        yield method_table(judged)
        yield f"![Both sides of imitation, {title.lower()}](objectives-{budget}.svg)"
        yield (
            f"`{reference}` minus each other method, with 95 % intervals over seeds and prompts; below 0 it is the\n"
            "better one, and bold where the interval does not hold 0:"
        )
        differences = [row for row in rows if row.get("budget") == budget and "minus" in row]
        yield difference_table(differences, of="minus")


def real_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield the paragraphs and tables of the comparison on a real model."""
    rows: Sequence[Row] = [row for row in document["rows"] if row["setting"] == "instructions"]
    facts = document["settings"]["instructions"]
    reference = next(row["method"] for row in rows if "minus" in row)
    devices = " and ".join(sorted({str(one["device"]) for one in facts["trained_on"]}))
    rates = ", ".join(f"{rate:g}" for rate in facts["learning_rates"])
    yield "## Real setting: SmolLM2-135M-Instruct to the quickstart's student"
    yield (
        "`python benchmarks/objectives.py instructions` (`benchmarks/instructions.py` has texts and sets).\n"
        f"{facts['steps']} steps of 16 texts from a shared warm start, trained on {devices}; learning rates from "
        f"{rates}.\nEqual seconds go by what a step costs on {facts['step_costs']['machine']['cores']} cores of "
        f"{facts['step_costs']['machine']['cpu']}. {count_seeds(rows)}, revision {str(facts['revision'])[:7]}."
    )
    for budget, title in BUDGETS.items():
        yield f"### {title}, by set"
        for name in dict.fromkeys(row["set"] for row in rows):
            of_set = [row for row in rows if row.get("budget") == budget and row["set"] == name]
            yield f"**{name}**"
            yield method_table([row for row in of_set if "minus" not in row], REAL_METRICS)
            yield f"`{reference}` minus each other method:"
            yield difference_table([row for row in of_set if "minus" in row], REAL_METRICS, of="minus")


def ablation_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield the paragraphs and tables of the ablation."""
    rows: Sequence[Row] = document["rows"]
    yield "## What each part is worth"
    yield (
        "`python benchmarks/ablation.py small` and `instructions`: the base is AMMD (both sides, the critic in closed\n"
        "form), and each arm changes what its name says. Each group was trained from the same models as its own base."
    )
    metrics = {"small": METRICS, "instructions": REAL_METRICS}
    for part, facts in document["settings"].items():
        of_part = [row for row in rows if row["part"] == part and "minus" not in row]
        setting, _, group = part.partition("/")
        sets = len({row["set"] for row in of_part})
        yield f"### {group}, {setting} setting"
        yield (
            f"Base `{json.dumps(facts['base'])}`; {facts['steps']} steps, {describe(of_part, facts)}"
            f"{f'; means over {sets} sets' if sets > 1 else ''}."
        )
        yield method_table(mean_over_sets(of_part), metrics[setting])


def cross_tokenizer_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield the paragraphs and tables of the comparison where teacher and student have different tokenizers."""
    rows: Sequence[Row] = document["rows"]
    facts = document["settings"]
    match, parameters = facts["match"], facts["parameters"]
    judged = [row for row in rows if "minus" not in row]
    seconds = statistics.median(row["seconds"] for row in judged if row["seconds"])
    yield "## A teacher with another tokenizer"
    rates = ", ".join(f"{rate:g}" for rate in facts["learning_rates"])
    yield (
        "`python benchmarks/cross_tokenizer.py` (`benchmarks/two_vocabularies.py` has teacher, student and texts).\n"
        f"Byte-level BPE of {match['teacher_tokens']} tokens for a teacher of {parameters['teacher'] / 1e6:.2f} "
        f"million parameters, of {match['student_tokens']} for a student of\n{parameters['student'] / 1e6:.2f} "
        f"million; {match['shared_tokens']} tokens shared, {100 * match['aligned_share']:.0f} % of the student's "
        f"aligned. All start after {facts['warm']['steps']} steps of cross-entropy\non the {facts['train_texts']} "
        f"texts of the teacher's that all go on with, {facts['steps']} steps of 16 texts in {seconds:.0f} s (median);\n"
        f"learning rates from {rates}, by the sum of both columns on other prompts; {facts['test_texts']} test "
        f"prompts;\n{describe(judged, document)}.\n"
        f"The teacher itself: {facts['test_teacher_nats_per_byte']:.3f} nats a byte of its texts."
    )
    yield method_table(judged, BYTE_METRICS)
    yield (
        "`ammd` minus each other method, with 95 % intervals over seeds and prompts; below 0 it is the better one:"
    )
    yield difference_table([row for row in rows if "minus" in row], BYTE_METRICS, of="minus")


def mean_over_sets(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each method, seed and metric: the mean over the sets that it was judged on."""
    by_key: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        by_key.setdefault((row["method"], row["seed"], row["metric"]), []).append(row)
    return [
        {**found[0], "set": None, "value": statistics.mean(row["value"] for row in found)}
        for found in by_key.values()
    ]


def export_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield the table of every scheme."""
    machine = document["machine"]
    yield "## What each file costs and loses"
    yield (
        "`python benchmarks/export.py`; KL, top-1 agreement and perplexity against the checkpoint on held-out text,\n"
        f"decoding and making on {machine['cores']} cores of {machine['cpu']}. Fallbacks are tensors that llama.cpp\n"
        "stores in a larger type than was meant, because its blocks do not fit their rows. The packaged SmolLM2 was\n"
        "stored in Q4_1, so that type, and Q5_1 with a matrix, find its grid again: no other model has them so near,\n"
        "and its student loses there what training changed (export.md)."
    )
    head = [
        "scheme",
        "imatrix",
        "MB",
        "bits a weight",
        "fallbacks",
        "KL, nats",
        "same top-1, %",
        "perplexity, %",
    ]
    head += ["decode, tokens/s", "made in, s", "peak, MB", "revision"]
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        yield f"**{model}**"
        lines = [head]
        for row in document["rows"]:
            if row["model"] == model:
                lines.append(
                    [
                        f"`{row['scheme']}`",
                        "yes" if row["imatrix"] else "",
                        f"{row['file_bytes'] / 1e6:.1f}",
                        f"{row['bits_per_weight']:.2f}",
                        str(row["fallbacks"]),
                        f"{row['kl_nats']:.2g}",
                        f"{100 * row['top1']:.1f}",
                        f"{100 * row['perplexity_change']:+.2f}",
                        f"{row['decode_tokens_per_s']:.0f}",
                        f"{row['seconds']:.0f}",
                        f"{row['peak_rss_bytes'] / 1e6:.0f}",
                        row.get("revision", "")[:7],
                    ]
                )
        yield table(lines)


def peers_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield our exports beside those made by hand with the same libraries."""
    rows: Sequence[Row] = document["rows"]
    machine = document["machine"]
    yield "## Beside what a user would do by hand"
    yield (
        "`python benchmarks/export_peers.py`: the same checkpoint, ours and theirs in turn, from it to the file,\n"
        f"medians with the smallest and largest, {machine['cores']} cores of "
        f"{machine['cpu']}, revision {str(document['revision'])[:7]}.\nOurs first, then theirs."
    )
    head = ["by hand with", "scheme", "MB", "KL, nats", "rounds", "seconds", "ours / theirs"]
    lines = [head]
    for row in rows:
        pairs = [
            [f"{row[f'{side}_file_bytes'] / 1e6:.1f}", f"{row[f'{side}_kl_nats']:.3g}", _seconds(row, side)]
            for side in ("ours", "theirs")
        ]
        cells = [f"{ours}, {theirs}" for ours, theirs in zip(*pairs, strict=True)]
        cells.insert(2, str(row["rounds"]))
        lines.append([row["peer"], f"`{row['scheme']}`", *cells, f"{row['ratio']:.2f}"])
    yield table(lines)
    faulty = [row for row in rows if "theirs_fault" in row]
    if faulty:
        yield "\n".join(
            ["Made by hand, but not as the checkpoint; KL with the tokenizer of ours:", ""]
            + [f"- {row['peer']}, `{row['scheme']}`: {row['theirs_fault']}" for row in faulty]
        )


def _seconds(row: Row, side: str) -> str:
    low, high = row[f"{side}_seconds_min"], row[f"{side}_seconds_max"]
    return f"{row[f'{side}_seconds']:.1f} ({low:.1f} to {high:.1f})"


def describe(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return where and with how many seeds rows were measured."""
    machine = facts["machine"]
    devices = sorted({str(one["device"]) for one in facts.get("trained_on", []) if one["device"] != "cpu"})
    trained_on = " and ".join(devices) or f"{machine['cores']} cores of {machine['cpu']}"
    return f"{count_seeds(rows)}, {trained_on}, revision {str(facts['revision'])[:7]}"


def count_seeds(rows: Sequence[Row]) -> str:
    """Return with how many seeds rows were measured."""
    count = len({row["seed"] for row in rows if "seed" in row})
    return f"{count} seed{'s' if count > 1 else ''}"


def method_table(rows: Sequence[Row], metrics: Mapping[str, str] = METRICS) -> str:
    """Return means and spreads of each method, the best of each column in bold."""
    by_method: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, Row] = {}
    for row in rows:
        by_method.setdefault(row["method"], {}).setdefault(row["metric"], []).append(row["value"])
        facts[row["method"]] = row
    best = {
        metric: (max if metric in HIGHER_IS_BETTER else min)(
            statistics.mean(found[metric]) for found in by_method.values() if metric in found
        )
        for metric in metrics
    }
    head = ["method", "steps", "learning rate", *metrics.values()]
    lines = [head]
    for method, found in by_method.items():
        cells = [f"`{method}`", str(facts[method]["steps"]), f"{facts[method]['lr']:g}"]
        for metric in metrics:
            if metric not in found:
                cells.append("failed")
                continue
            mean = statistics.mean(found[metric])
            text = f"{mean:.3f}" if mean != best[metric] else f"**{mean:.3f}**"
            spread = f" ± {statistics.stdev(found[metric]):.3f}" if len(found[metric]) > 1 else ""
            cells.append(text + spread)
        lines.append(cells)
    return table(lines)


def difference_table(rows: Sequence[Row], metrics: Mapping[str, str] = METRICS, *, of: str) -> str:
    """Return the differences to each other method with their intervals."""
    by_method: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_method.setdefault(row[of], {})[row["metric"]] = row
    head = ["minus", *metrics.values()]
    lines = [head]
    for method, found in by_method.items():
        cells = [f"`{method}`"]
        for metric in metrics:
            cells.append(difference(found[metric], digits=3))
        lines.append(cells)
    return table(lines)


def plot(rows: Sequence[Row], budget: str, path: Path) -> None:
    """Draw each method by its distance on its own and on the teacher's samples."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "ammd"  # the same file from the same numbers
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    pairs = (("teacher_kl_nats", "own_nll_nats"), ("teacher_tv", "own_tv"))
    for panel, (across, up) in zip(panels, pairs, strict=True):
        values: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            if row.get("budget") == budget and row.get("metric") in (across, up) and "minus" not in row:
                values.setdefault(row["method"], {}).setdefault(row["metric"], []).append(row["value"])
        for method, found in values.items():
            x, y = (statistics.mean(found[name]) for name in (across, up))
            panel.plot(x, y, "o", color="#b2182b" if method.startswith("ammd") else "#4d4d4d")
            panel.annotate(method, (x, y), textcoords="offset points", xytext=(5, 3), fontsize=8)
        panel.set_xlabel(METRICS[across])
        panel.set_ylabel(METRICS[up])
        panel.grid(alpha=0.3)
        panel.margins(0.14)  # room for the names
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
