"""The sections of docs/results.md about what training costs, and what a second phase and rounded weights are worth."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markdown_parts import table

Row = Mapping[str, Any]
_SHARES = {"rollout_share": "rollouts", "teacher_share": "teacher", "critics_share": "critics"}
_QUANTIZED_METRICS = {
    "kl_to_teacher_nats": "KL, teacher's samples",
    "top1_agreement": "same top-1",
    "sampled_nll_under_teacher_nats": "NLL under the teacher, own samples",
    "sampled_rouge_l": "ROUGE-L to the teacher, samples",
    "rouge_l": "ROUGE-L to the teacher, greedy",
    "file_kl_to_teacher_nats": "the file: KL",
    "file_top1_agreement": "the file: same top-1",
    "file_rouge_l": "the file: ROUGE-L, greedy",
}
_PHASE_METRICS = {
    "sampled_nll_under_teacher_nats": "NLL under the teacher, own samples",
    "sampled_rouge_l": "ROUGE-L to the teacher, samples",
    "rouge_l": "ROUGE-L to the teacher, greedy",
    "kl_to_teacher_nats": "KL, teacher's samples",
    "looping_share": "looping answers",
}
_PHASES = {"warm": "warm start", "warm-more": "more warm start", "ammd": "AMMD"}
_ARMS = {"float": "not rounded", "afterwards": "rounded afterwards", "aware": "trained as rounded"}


def step_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield what a training step costs, ours and TRL's."""
    machine, setting, trl = document["machine"], document["setting"], document["trl_versions"]
    yield "## A training step"
    yield (
        f"`python benchmarks/step.py`: {setting['teacher']} to {setting['student_layers']} of its layers, "
        f"{setting['on_policy_rows']} on-policy rows a step of up to {setting['response_tokens']} new\ntokens, sampled "
        "anew in each step unless said otherwise, bfloat16. AMMD's steps have as many rows of the teacher's texts on "
        'top.\n"Checkpointed" steps compute their activations again in the backward pass. '
        f"Medians of {setting['rounds']} fresh processes with the smallest\nand largest, {setting['measured_steps']} "
        f"steps each, in turn; TRL {trl['trl']} with transformers {trl['transformers']}, {machine['cores']} cores of "
        f"{machine['cpu']}, revision {str(document['revision'])[:7]}."
    )
    head = ["trainer", "objective", "seconds a step", "response tokens/s", "peak RSS, GB"]
    yield table([[*head, *_SHARES.values(), "the rest"], *(_step_line(row) for row in document["rows"])])


def _step_line(row: Row) -> list[str]:
    shares = [row.get(key) for key in _SHARES]
    return [
        row["trainer"],
        row["objective"],
        f"{row['step_s']:.1f} ({row['step_s_min']:.1f} to {row['step_s_max']:.1f})",
        f"{row['tokens_per_s']:.0f}",
        f"{row['peak_rss_bytes'] / 1e9:.2f}",
        *("" if share is None else f"{100 * share:.0f} %" for share in shares),
        f"{100 * (1 - sum(share or 0 for share in shares)):.0f} %",
    ]


def second_phase_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield what the second phase is worth beside as many seconds of more warm start."""
    rows: Sequence[Row] = [row for row in document["rows"] if "minus" not in row]
    gains: Sequence[Row] = [row for row in document["rows"] if "minus" in row]
    prompts = max(row["prompts"] for row in rows)
    yield "## The second phase, or more of the first"
    yield (
        f"`python benchmarks/second_phase.py`: the packaged recipe on {prompts} held-out prompts, AMMD beside stopping "
        "before it and beside\nas many seconds of more warm start. Means over "
        f"{_where(rows, document)}."
    )
    lines = [["", "steps", "seconds", *_PHASE_METRICS.values()]]
    for arm, name in _PHASES.items():
        of = [row for row in rows if row["arm"] == arm]
        steps = f"{statistics.mean(row['steps'] for row in of):.0f}"
        seconds = f"{statistics.mean(row['seconds'] for row in of):.0f}"
        lines.append(
            [name, steps, seconds, *(_mean([row[metric] for row in of]) for metric in _PHASE_METRICS)]
        )
    for arm in dict.fromkeys(row["minus"] for row in gains):
        by_metric = {row["metric"]: row for row in gains if row["minus"] == arm}
        found = (_difference(by_metric[metric]) for metric in _PHASE_METRICS)
        lines.append([f"AMMD minus {_PHASES[arm]}", "", "", *found])
    yield table(lines)


def quantization_aware_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield what training in rounded weights is worth, beside rounding afterwards."""
    prepare, distill = document["recipe"]["prepare"], document["recipe"]["distill"]
    rows: Sequence[Row] = [row for row in document["rows"] if "minus" not in row]
    gains: Sequence[Row] = [row for row in document["rows"] if "minus" in row]
    yield "## Training in the weights of a file"
    yield (
        f"`python benchmarks/quantization_aware.py`: `distill.quantize_as` lets the second phase "
        f"({distill['objective']['steps']} steps of `{distill['objective']['kind']}` after "
        f"{distill['warm']['steps']} of warm start,\n{prepare['student']['layers']} layers) compute with the weights "
        "that the file will hold. The same weights in float32, on "
        f"{document['prompts']['weights']} held-out\nprompts, and the file in its own engine, which rounds activations "
        f"too, on {document['prompts']['files']}. Means over {_where(rows, document)}."
    )
    names = [metric for metric in _QUANTIZED_METRICS if any(row["metric"] == metric for row in rows)]
    lines = [["weights", "", *(_QUANTIZED_METRICS[metric] for metric in names)]]
    for scheme, arm in dict.fromkeys((row["scheme"], row["arm"]) for row in rows):
        of = [row for row in rows if (row["scheme"], row["arm"]) == (scheme, arm)]
        found = [[row["value"] for row in of if row["metric"] == metric] for metric in names]
        lines.append([_scheme(scheme), _ARMS[arm], *map(_mean, found)])
    for scheme in dict.fromkeys(row["scheme"] for row in gains):
        by_metric = {row["metric"]: row for row in gains if row["scheme"] == scheme}
        lines.append(
            [_scheme(scheme), "difference of the two", *(_difference(by_metric[metric]) for metric in names)]
        )
    yield table(lines)


def _where(rows: Sequence[Row], document: Mapping[str, Any]) -> str:
    machine, seeds = document["machine"], {row["seed"] for row in rows}
    cores = "a core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return (
        f"{len(seeds)} seeds ± the standard deviation between them, {cores} of {machine['cpu']}, "
        f"revision {str(document['revision'])[:7]}"
    )


def _scheme(name: str) -> str:
    return "float" if name == "none" else f"`{name}`"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _difference(row: Row) -> str:
    spread = "" if row["difference_sd"] is None else f" ± {row['difference_sd']:.4f}"
    return f"{row['difference_mean']:+.4f}{spread}"
