"""A benchmark as rows of llama-bench: one for each model, thread count and test (`pp` prefill, `tg` decode).

The first columns are all of llama-bench's, by its names and with its meanings, so that what reads it reads ours. What
does not apply, or is not known, is the empty text there and not null: its compare script joins rows on equality, and
in SQL null equals nothing. Ours follow; there null is null. What could not be measured has no row: the script reckons
with every rate that it finds.

Source: the list of fields in llama.cpp's tools/llama-bench/llama-bench.cpp.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ammd
from ammd.artifact import hash_text

from .bench_document import EXPECTED_AND_MEMORY, BenchDocument, Model, Row

_BUILD_DIGITS = 8
_NS = 1e9
_LLAMA_CPP_ONLY = {"n_cpu_moe": 0, "cpu_strict": 0, "embeddings": 0, "tensor_buft_overrides": "none"}

# Name -> type of its column.
THEIRS: Mapping[str, type] = {
    "build_commit": str,
    "build_number": int,
    "cpu_info": str,
    "gpu_info": str,
    "backends": str,
    "model_filename": str,
    "model_type": str,
    "model_size": int,
    "model_n_params": int,
    "n_batch": int,
    "n_ubatch": int,
    "n_threads": int,
    "cpu_mask": str,
    "cpu_strict": int,
    "poll": int,
    "type_k": str,
    "type_v": str,
    "n_gpu_layers": int,
    "n_cpu_moe": int,
    "split_mode": str,
    "main_gpu": int,
    "no_kv_offload": int,
    "flash_attn": int,
    "devices": str,
    "tensor_split": str,
    "tensor_buft_overrides": str,
    "load_mode": str,
    "lazy_mode": str,
    "embeddings": int,
    "no_op_offload": int,
    "no_host": int,
    "repack": int,
    "fit_target": int,
    "fit_min_ctx": int,
    "n_prompt": int,
    "n_gen": int,
    "n_depth": int,
    "test_time": str,
    "avg_ns": int,
    "stddev_ns": int,
    "avg_ts": float,
    "stddev_ts": float,
}
OURS: Mapping[str, type] = {
    "test": str,
    "engine": str,
    "file_sha256": str,
    "file_bytes": int,
    "processes": int,
    "median_ts": float,
    "median_ts_low": float,
    "median_ts_high": float,
    "load_s": float,
    "ttft_s": float,
    "ttft_s_low": float,
    "ttft_s_high": float,
    "token_p50_s": float,
    "token_p90_s": float,
    "token_p95_s": float,
    "token_p99_s": float,
    "peak_rss_bytes": int,
    **dict.fromkeys(("load_cold_s", "load_warm_s"), float),
    **dict.fromkeys(("rss_anon_bytes", "rss_file_bytes", "pss_bytes", "swap_bytes", "kv_cache_bytes"), int),
    **dict.fromkeys(("weight_bytes_per_token", "kv_bytes_per_token"), int),
    **dict.fromkeys(("bandwidth_bytes_per_s", "decode_ceiling_tokens_per_s", "decode_of_ceiling"), float),
    "validity": str,
    "validity_reasons": str,
    "kl_nats": float,
    "proofs": str,
}
COLUMNS: Mapping[str, type] = {**THEIRS, **OURS}
SAMPLES = ("samples_ns", "samples_ts")  # lists: llama-bench has them in its JSON forms alone


class Phase(Enum):
    """What a row times."""

    PREFILL = "pp"
    DECODE = "tg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a verify stage found about a file."""

    kl_nats: float | None
    passed: bool


def bench_rows(document: BenchDocument, *, proofs: Mapping[str, Proof]) -> list[dict[str, Any]]:
    """Return the rows; `proofs` is by the hash of a file."""
    shared = {
        "build_commit": build_of(document),
        "cpu_info": document.machine.cpu or "",
        "backends": "CPU",
        "n_gpu_layers": 0,
    }
    return [
        dict.fromkeys(THEIRS, "")
        | dict.fromkeys(OURS)
        | shared
        | _model_columns(name, model)
        | _engine_columns(row)
        | _phase_columns(row, phase)
        | _proof_columns(proofs.get(model.file.sha256))
        for name, model in document.bench.items()
        for row in model.rows
        for phase in Phase
    ]


def build_of(document: BenchDocument) -> str:
    """Return what stands for llama-bench's commit: a hash of all that is under test.

    Two benchmarks of the same files with the same versions are one build, measured twice.
    """
    parts = {f"ammd {ammd.__version__}"}
    parts |= {row.engine for row in document.rows}
    parts |= {f"{model.file.name} {model.file.sha256}" for model in document.bench.values()}
    return hash_text("\n".join(sorted(parts)))[:_BUILD_DIGITS]


def _model_columns(name: str, model: Model) -> dict[str, Any]:
    file = model.file
    return {
        "model_filename": file.name,
        "model_type": name,
        "model_size": "" if file.weight_bytes is None else file.weight_bytes,
        "model_n_params": "" if file.parameters is None else file.parameters,
        "file_sha256": file.sha256,
        "file_bytes": file.bytes,
    }


def _engine_columns(row: Row) -> dict[str, Any]:
    """Return what the engine says of itself in llama-bench's words; an engine that says less leaves more empty."""
    options = row.settings
    columns: dict[str, Any] = {
        "engine": row.engine,
        "n_threads": row.threads,
        "processes": row.processes,
        "validity": row.validity,
        "validity_reasons": "; ".join(row.validity_reasons) if row.validity else None,
    }
    if "batch_tokens" in options:
        micro = options.get("micro_batch_tokens", options["batch_tokens"])
        columns |= {"n_batch": options["batch_tokens"], "n_ubatch": micro}
    if "kv_cache_type" in options:
        columns |= {"type_k": options["kv_cache_type"], "type_v": options["kv_cache_type"]}
    if "flash_attention" in options:
        columns["flash_attn"] = int(options["flash_attention"])
    if "memory_map" in options:
        columns["load_mode"] = "mmap" if options["memory_map"] else "none"
    if "weight_repacking" in options:
        columns["repack"] = int(options["weight_repacking"])
    if row.engine.startswith("llama.cpp"):
        columns |= _LLAMA_CPP_ONLY
    return columns | {
        "test_time": row.measured_at,
        "load_s": row.load_s,
        "peak_rss_bytes": row.peak_rss_bytes,
        **{name: getattr(row, name) for name in EXPECTED_AND_MEMORY},
    }


def _phase_columns(row: Row, phase: Phase) -> dict[str, Any]:
    prefills = phase is Phase.PREFILL
    metric = "prefill_tokens_per_s" if prefills else "decode_tokens_per_s"
    tokens = row.prompt_tokens if prefills else row.decode_tokens
    rates = [rate for process in row.by_process(metric) for rate in process]
    times = [round(_NS * tokens / rate) for rate in rates]
    only = (
        ("ttft_s", "ttft_s_low", "ttft_s_high")
        if prefills
        else tuple(f"token_p{percent}_s" for percent in (50, 90, 95, 99))
    )
    return {
        "test": f"{phase.value}{tokens}",
        "n_prompt": tokens if prefills else 0,
        "n_gen": 0 if prefills else tokens,
        "n_depth": 0 if prefills else _decode_depth(row),  # tokens that precede the timed ones
        "avg_ns": round(statistics.mean(times)),
        "stddev_ns": round(_deviation(times)),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": _deviation(rates),
        "median_ts": getattr(row, metric),
        "median_ts_low": getattr(row, f"{metric}_low"),
        "median_ts_high": getattr(row, f"{metric}_high"),
        "samples_ns": times,
        "samples_ts": rates,
        **{name: getattr(row, name) for name in only},
    }


def _decode_depth(row: Row) -> int:
    return row.prompt_tokens if row.decode_depth_tokens is None else row.decode_depth_tokens


def _deviation(values: list[Any]) -> float:
    """Return the standard deviation of a sample; 0 of a single value, as llama-bench has it."""
    return float(statistics.stdev(values)) if len(values) > 1 else 0.0


def _proof_columns(proof: Proof | None) -> dict[str, Any]:
    if proof is None:
        return {}
    return {"kl_nats": proof.kl_nats, "proofs": "passed" if proof.passed else "failed"}
