"""The sections of docs/results.md about engines and devices: beside others' tools, projections, arm64, intervals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markdown_parts import table

Row = Mapping[str, Any]


def agreement_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield our numbers beside those of the engines' own tools, and what measuring costs."""
    rows: Sequence[Row] = document["rows"]
    machine, settings = document["machine"], document["settings"]
    where = f"{machine['cores']} cores of {machine['cpu']}, revision {str(document['revision'])[:7]}"
    lengths = f"{settings['prompt_tokens']} tokens of prompt and {settings['decode_tokens']} decoded"
    yield "## Beside the engines' own tools"
    yield (
        "`python benchmarks/agreement.py`: ours and theirs in turn, each in a fresh process under the same settings,\n"
        f"{lengths}, {settings['rounds']} rounds, {where}.\n"
        "Rates in tokens a second, memory in MB, medians; the ratio is the median of the rounds' own, with its 95 %\n"
        "interval. onnxruntime-genai's wheel has no benchmark; a loop of the calls that its own makes stands for it.\n"
        "A goal is undecided where the interval lies across its border."
    )
    head = ["engine", "file", "what", "beside", "ours", "theirs", "ratio", "goal", "reached"]
    yield table([head, *(_compared(row) for row in rows if row["ratio"] is not None)])
    harness = next(row for row in rows if row["metric"] == "cpu_share")
    shares = [f"{100 * harness[name]:.2f} %" for name in ("ours", "whole_share")]
    yield (
        f"While its children measure, the harness takes {shares[0]} of a core; over a whole benchmark, with the hash\n"
        f"of the file and the intervals, {shares[1]}. A decoded token, in ms:"
    )
    head = ["engine", "vocabulary", "in the library", "our Python", "choosing the token", "ours together"]
    yield table([head, *(_parts(row) for row in rows if row["metric"] == "token_outside_library_s")])


def _compared(row: Row) -> list[str]:
    scale, digits = (1e6, 1) if row["metric"].endswith("_bytes") else (1, 0)
    high = row["goal_high"]
    return [
        row["engine"],
        f"`{row['artifact']}`",
        row["metric"].replace("_tokens_per_s", "").removesuffix("_bytes").replace("_", " "),
        row["native_tool"],
        *(f"{row[side] / scale:.{digits}f}" for side in ("ours", "native")),
        f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
        f"{row['goal_low']:g} to {high:g}" if high else f"{row['goal_low']:g} and more",
        row["reached"],
    ]


def _parts(row: Row) -> list[str]:
    parts = (row["library_s"], row["python_s"], row["choice_s"], row["ours"])
    return [row["engine"], f"{row['vocab_size']:,}", *(f"{1e3 * part:.3f}" for part in parts)]


def lm_evaluation_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield what lm-evaluation-harness makes of our engines beside its own backend."""
    machine, settings = document["machine"], document["settings"]
    yield "## lm-evaluation-harness on our engines"
    yield (
        "`python benchmarks/lm_evaluation.py`: the quickstart's student and its files, the same requests through our\n"
        "engines and through the harness's own Hugging Face backend (`hf`, float32), "
        f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''} of {machine['cpu']},\n"
        f"revision {str(document['revision'])[:7]}. Difference from `hf` with its 95 % interval over rows; the gap is\n"
        "that of a log-likelihood in nats; requests a second of processor time."
    )
    head = ["task", "model", "metric", "value", "minus `hf`", "largest gap", "median gap", "requests/s"]
    yield table([head, *(_evaluated(row) for row in document["rows"])])


def _evaluated(row: Row) -> list[str]:
    gaps = (row["largest_gap_nats"], row["median_gap_nats"])
    return [
        row["task"],
        f"`{row['model']}`",
        row["metric"].replace("_", " "),
        f"{row['value']:.4f}",
        f"{row['difference']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
        *("–" if gap is None else f"{gap:.2g}" for gap in gaps),
        f"{row['requests_per_cpu_s']:.3g}",
    ]


def projection_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield how far off projected rates are."""
    yield "## Projected speed on phones, against what was published"
    share = f"{document['coverage']:.0%}"
    yield (
        "`python benchmarks/projection.py`: each device in turn is left out of the fit, and its published rates are\n"
        f"projected from the others; the interval is meant to hold {share}. Then, with one rate of the device known,\n"
        "each other one of it. Error is of published / projected. The intervals of the latter are made from these\n"
        "pairs, so what lies in them is no test; the product prints at least 1.15 (`projection_points.toml`)."
    )
    head = [
        "known of the device",
        "rate",
        "devices",
        "rates",
        "median error, %",
        "range",
        "in the interval, %",
    ]
    yield table([head, *(_error(row) for row in document["rows"] if row["kind"] != "published")])


def _error(row: Row) -> list[str]:
    known = "nothing"
    if row["kind"] == "anchored":
        known = "a rate of the other class" if row["crossed"] else "a rate of the same class"
    return [
        known,
        row["metric"].partition("_")[0],
        str(row.get("devices", "")),
        str(row.get("rates", row.get("pairs"))),
        f"{100 * row['median_error']:.0f}",
        f"{row['worst_low']:.2f} to {row['worst_high']:.2f}",
        f"{100 * row['inside']:.0f}",
    ]


def arm64_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield how far files are from themselves on emulated arm64."""
    rows: Sequence[Row] = document["rows"]
    settings = document["settings"]
    apart = [one for row in rows for one in (*row["apart"], *row["partings"])]
    ties = sum(one["is_near_tie"] for one in apart)
    yield "## Files on arm64, emulated"
    yield (
        f"`python benchmarks/arm64.py`: {settings['what']}, under `qemu-aarch64` against "
        f"{document['machine']['cpu']}.\n"
        f"Token ids of {settings['texts']} texts, {settings['tokens']} teacher-forced positions, greedy texts of "
        f"{settings['greedy_tokens']} tokens. Correctness only:\nspeed under emulation means nothing. Revision "
        f"{str(document['revision'])[:7]}."
    )
    head = ["file", "build", "token ids", "KL nats, mean", "limit of its proof", "KL nats, largest"]
    head += ["same likeliest token, %", "greedy texts that part"]
    yield table([head, *(_parity(row) for row in rows)])
    yield (
        f"Of {len(apart)} positions with another likeliest token, in teacher-forced and in greedy text, {ties} are "
        "near-ties: this\nmachine prefers its own by no more than the largest logit difference between both. It "
        "prefers "
        f"it by {max(one['logit_gap'] for one in apart):.2f} at\nmost. So equal greedy text would test nothing, and "
        "distributions are compared."
    )


def _parity(row: Row) -> list[str]:
    return [
        f"`{row['file']}`",
        f"`{row['isa']}`",
        "equal" if row["same_token_ids"] else "differ",
        f"{row['kl_nats']:.4f}",
        f"{row['kl_limit_nats']:g}",
        f"{row['max_kl_nats']:.3f}",
        f"{100 * row['top1_agreement']:.1f}",
        f"{len(row['partings'])} of {row['greedy_texts']}",
    ]


def run_to_run_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield how often intervals hold and disturbances are noticed."""
    rows: Sequence[Row] = document["rows"]
    machine, settings = document["machine"], document["settings"]
    calm = [row for row in rows if row.get("runs") == "undisturbed" and "what" not in row]
    rates = [row["decode_tokens_per_s"] for row in calm]
    yield "## Do the benchmark's intervals hold?"
    yield (
        f"`python benchmarks/run_to_run.py`: one GGUF of {document['file']['bytes'] / 1e6:.0f} MB over and over, "
        f"{settings['processes']} processes a run,\n{settings['repetitions']} to {settings['max_repetitions']} passes "
        f"each ({settings['prompt_tokens']} tokens in, {settings['decode_tokens']} out, "
        f"{settings['threads'][0]} thread), "
        f"{statistics.median(row['seconds'] for row in calm):.0f} s a run, {machine['cores']} cores of\n"
        f"{machine['cpu']}, revision {str(document['revision'])[:7]}. Medians of undisturbed runs: "
        f"{min(rates):.0f} to {max(rates):.0f} tokens/s decoding.\nIn disturbed runs another process counts from "
        "half-way on. The first interval\nis of the true median, the second of another run's."
    )
    head = ["", "decode", "prefill", "first token"]
    lines = [head]
    covers = [row for row in rows if row.get("what") == "covers the next median"]
    for name in dict.fromkeys(row["interval"] for row in covers):
        found = [f"{row['count']} of {row['of']}" for row in covers if row["interval"] == name]
        lines.append([f"95 % interval of the {name} holds the next run's", *found])
    yield table(lines)
    marked = (row for row in rows if row.get("what") == "marked")
    yield "\n".join(
        f"- {row['runs']} runs marked `noisy` or `invalid`: {row['count']} of {row['of']} ({row['invalid']} `invalid`)"
        for row in marked
    )
