"""A finished run as the report sees it, with made-up numbers like those of a real one."""

from __future__ import annotations

import copy
import random
from typing import Any

MIB = 2**20
# size in MiB, KL, ROUGE-L, decode tokens/s, TTFT in ms, peak RSS in MiB
MODELS = {
    "teacher": (513, 0.0, 1.0, 15, 264, 914),
    "student-pruned": (432, 1.259, 0.166, None, None, None),
    "student-warm": (216, 0.573, 0.296, None, None, None),
    "student": (216, 0.554, 0.272, 18, 193, 993),
    "gguf-f16": (218, 0.554, 0.287, 108, 149, 288),
    "gguf-q8_0": (117, 0.559, 0.292, 127, 139, 187),
    "gguf-q4_k_m": (87, 0.579, 0.250, 128, 169, 158),
    "onnx-int4": (97, 0.632, 0.276, 144, 172, 290),
}
TEACHER_TEXT = (
    "The sky looks blue because the air scatters short waves of light more than long ones.\nThat is all."
)
STUDENT_TEXT = "The sky is blue because air scatters <b>blue</b> light more than red light.\nThat is all."
BUDGET = {
    "met": False,
    "rows": [
        {
            "artifact": "gguf-q4_k_m",
            "metric": "bytes",
            "unit": "bytes",
            "limit": 90 * MIB,
            "value": 87 * MIB,
            "met": True,
            "over_by": None,
            "why": "",
        },
        {
            "artifact": "gguf-q4_k_m",
            "metric": "kl_to_teacher_nats",
            "unit": "nats",
            "limit": 0.5,
            "value": 0.579,
            "met": False,
            "over_by": 0.079,
            "why": "",
        },
        {
            "artifact": "onnx-int4",
            "metric": "ttft_s",
            "unit": "s",
            "limit": 0.2,
            "value": None,
            "met": False,
            "over_by": None,
            "why": "it was not measured",
        },
    ],
}


def bench_record(decode: float, ttft_ms: float, rss_mib: float) -> dict[str, Any]:
    """Return a model's speed at two thread counts."""
    rows = [
        {
            "threads": threads,
            "prompt_tokens": 128,
            "processes": 3,
            "replaced": [],
            "passes_stopped_by": ["target"] * 3,
            "samples": [{"ttft_s": [ttft_ms / 1e3] * 5, "decode_tokens_per_s": [rate] * 5}] * 3,
            "warmup_passes": [2, 2, 2],
            "validity": "good" if threads == 2 else "noisy",
            "validity_reasons": [] if threads == 2 else ["other processes used 12 % of the CPU"],
            "proofs": "passed",
            "decode_tokens_per_s": rate,
            "decode_tokens_per_s_low": rate * 0.97,
            "decode_tokens_per_s_high": rate * 1.04,
            "prefill_tokens_per_s": rate * 8,
            "prefill_tokens_per_s_low": rate * 7.8,
            "prefill_tokens_per_s_high": rate * 8.2,
            "decode_ceiling_tokens_per_s": rate * 1.7,
            "decode_of_ceiling": 1 / 1.7,
            "ttft_s": ttft_ms / 1e3,
            "token_p50_s": 1 / rate,
            "token_p90_s": 1.1 / rate,
            "token_p95_s": 1.2 / rate,
            "token_p99_s": 1.9 / rate,
            "peak_rss_bytes": int(rss_mib * MIB),
            "rss_anon_bytes": int(rss_mib * MIB * 0.6),
            "rss_file_bytes": int(rss_mib * MIB * 0.3),
            "rss_shmem_bytes": 0,
            "swap_bytes": 0,
        }
        for threads, rate in ((1, decode * 0.6), (2, decode))
    ]
    return {**rows[1], "rows": rows, "best": {"threads": 2, "not_told_apart": []}}


def make_case(base: dict[str, Any], number: int) -> dict[str, Any]:
    """Return what `render_report` takes: summary, curves, answers and recipe, a little different for each number."""
    chance = random.Random(number)

    def off(value: float) -> float:
        return value * (1 if number == 0 else chance.uniform(0.85, 1.15))

    summary = copy.deepcopy(base) | {"run": f"quickstart/{number:08x}", "seconds": off(883.0)}
    summary["peak_rss_bytes"] = int(off(4843 * MIB))
    stages = zip(
        ("prepare", "distill", "export", "verify", "evaluate", "bench"),
        (174, 437, 31, 46, 139, 55),
        (2528, 4843, 1615, 993, 1698, 993),
        strict=True,
    )
    summary["stages"] = [
        {"stage": name, "seconds": off(seconds), "peak_rss_bytes": rss * MIB, "cached": False}
        for name, seconds, rss in stages
    ]
    rows = []
    for name, (size, kl, rouge, decode, ttft, rss) in MODELS.items():
        row = {"name": name, "path": f"/runs/{name}", "bytes": size * MIB}
        quality = {"kl_to_teacher_nats": off(kl), "rouge_l": min(1.0, off(rouge)), "repetition": 0.1}
        row["quality"] = quality | ({} if "-" in name else {"sampled_nll_under_teacher_nats": off(3.9)})
        row["bench"] = bench_record(off(decode), off(ttft), off(rss)) if decode and ttft and rss else None
        if "gguf" in name or "onnx" in name:
            proof = {"engine": "llama.cpp", "kl_nats": off(0.04), "top1_agreement": 0.9, "faults": []}
            row |= {"sha256": "0" * 64, "format": name.partition("-")[0], "parity": proof, "fallbacks": []}
        rows.append(row)
    summary["models"], summary["artifacts"] = rows[:4], rows[4:]
    summary["costs"] = {
        "seconds": summary["seconds"],
        "cpu_seconds": off(1700.0),
        "peak_rss_bytes": summary["peak_rss_bytes"],
        "generated_tokens": 61000,
        "trained_tokens": 940000,
        "joules": None,
    }
    curves = [
        {
            "phase": phase,
            "seconds": step * 4.0,
            "loss": off(start / (step + 3)),
            "kl_nats": off(2 / (step + 2)),
        }
        | ({"d_off": off(1.2 / (step + 2)), "d_on": off(0.9 / (step + 2))} if phase == "ammd" else {})
        for phase, start in (("warm", 6.0), ("ammd", 2.0))
        for step in range(30)
    ]
    answers = [
        {
            "prompt": f"Why is the sky <i>blue</i>, asked for the {turn} time?",
            "answers": {name: TEACHER_TEXT if name == "teacher" else STUDENT_TEXT for name in MODELS},
        }
        for turn in ("first", "second", "third", "fourth", "fifth", "sixth")
    ]
    return {
        "summary": summary,
        "curves": curves,
        "answers": answers,
        "recipe_text": 'name = "quickstart"\nseed = 0\n',
    }
