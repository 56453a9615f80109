"""What `ammd bench --profile` finds: rows measured here under an app's limits, and rows that are projected, apart.

No column of the one kind has the name of one of the other, so that not even a program that reads both can mix them up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.artifact import hash_file, hash_records, list_files
from ammd.errors import ArtifactError, BudgetExceededError, RecipeError
from ammd.machine import available_cores, describe_machine
from ammd.progress import progress

from .artifact_ref import ArtifactRef
from .bench_document import read_document
from .limited_run import Limits, run_under_limits
from .profiles import Profile, find_profile, load_profiles
from .projection import COVERAGE, Anchor, prefill_fault, project
from .traffic import Traffic, traffic_of

SCHEMA = "ammd.profile/1"
UNDER_LIMITS: Mapping[str, type] = {
    "kind": str,
    "profile": str,
    "file": str,
    "measured_on": str,
    "engine": str,
    "threads": int,
    "context_tokens": int,
    "prompt_tokens": int,
    "decode_tokens": int,
    "memory_limit_bytes": int,
    "memory_limit_by": str,
    "load_s": float,
    "read_from_disk_bytes": int,
    "ttft_s": float,
    "prefill_tokens_per_s": float,
    "decode_tokens_per_s": float,
    "peak_rss_bytes": int,
    "passes": bool,
    "broken": str,
}
PROJECTED: Mapping[str, type] = {
    "kind": str,
    "profile": str,
    "file": str,
    "projected_metric": str,
    "projected_tokens_per_s": float,
    "projected_low": float,
    "projected_high": float,
    "projected_coverage": float,
    "projected_depth_tokens": int,
    "projected_from": str,
    "weight_bytes_per_token": int,
    "kv_bytes_per_token": int,
}


def measure_profile(
    artifacts: Sequence[ArtifactRef], name: str, *, prompt_tokens: int, decode_tokens: int, anchor: str | None
) -> dict[str, Any]:
    """Run files under a profile's limits, project their rates, and return the document.

    Args:
        artifacts: GGUF files and ONNX folders.
        name: Of the profile.
        prompt_tokens: Of the run, and the depth at which decode is projected.
        decode_tokens: Of the run.
        anchor: What was measured on the phone: a benchmark's JSON document, or `MODEL=RATE`.

    Raises:
        RecipeError: There is no such profile, or the anchor is none, or the prompt does not fit in the context.
        ArtifactError: A model or the anchor's file is missing or damaged.
        EngineError: A model is of a kind that no phone runs, or its engine cannot run what it is to.
    """
    profile, known = find_profile(name), load_profiles()
    limits = Limits(
        threads=profile.threads,
        memory_bytes=profile.app_memory_bytes(known.app),
        context_tokens=known.app.context_tokens,
    )
    if prompt_tokens + decode_tokens > limits.context_tokens:
        raise RecipeError(
            f"{prompt_tokens} and {decode_tokens} tokens do not fit in the app's context of {limits.context_tokens}",
            hint="set fewer `prompt_tokens` or `decode_tokens`",
        )
    costs = {one.name: traffic_of(one.path) for one in artifacts}
    measured_there = _read_anchor(anchor, artifacts, costs, profile) if anchor else None
    rows: list[dict[str, Any]] = []
    projected: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    with progress("profile", len(artifacts)) as report:
        for done, one in enumerate(artifacts):
            report(done, one.name)
            row, _ = run_under_limits(one, limits, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens)
            rows.append({**row, "profile": name})
            found = project(
                profile, costs[one.name], known.calibration, depth_tokens=prompt_tokens, anchor=measured_there
            )
            shared = {"kind": "projected", "profile": name, "file": one.name}
            projected += [
                shared
                | {
                    "projected_metric": rate.metric.value,
                    "projected_tokens_per_s": rate.rate,
                    "projected_low": rate.low,
                    "projected_high": rate.high,
                    "projected_coverage": COVERAGE,
                    "projected_depth_tokens": prompt_tokens,
                    "projected_from": rate.basis,
                    "weight_bytes_per_token": costs[one.name].weight_bytes_per_token,
                    "kv_bytes_per_token": costs[one.name].kv_bytes_per_token,
                }
                for rate in found
            ]
            if fault := prefill_fault(profile, costs[one.name]):
                missing.append(
                    {"file": one.name, "projected_metric": "prefill_tokens_per_s", "reason": fault}
                )
        report(len(artifacts))
    return {
        "schema": SCHEMA,
        "profile": {"name": name, **profile.model_dump(mode="json"), "threads": limits.threads},
        "limits": {
            "threads": limits.threads,
            "threads_here": min(limits.threads, available_cores()),
            "memory_bytes": limits.memory_bytes,
            "context_tokens": limits.context_tokens,
            "source": known.app.source,
        },
        "machine": describe_machine(),
        "under_limits": [{key: row[key] for key in UNDER_LIMITS} for row in rows],
        "projected": projected,
        "not_projected": missing,
    }


def check_limits(document: Mapping[str, Any]) -> None:
    """Refuse a document in which a file breaks a limit.

    Raises:
        BudgetExceededError: One does; the message names each.
    """
    failed = [row for row in document["under_limits"] if not row["passes"]]
    if failed:
        raise BudgetExceededError(
            "; ".join(
                f"`{row['file']}` under the limits of {row['profile']}: {row['broken']}" for row in failed
            ),
            hint="a smaller scheme or a shorter context takes less memory",
            files=[row["file"] for row in failed],
        )


def _read_anchor(
    text: str, artifacts: Sequence[ArtifactRef], costs: Mapping[str, Traffic], profile: Profile
) -> Anchor:
    path, found, rate = text.rpartition("=")
    if found and not Path(text).exists():
        return _stated_rate(Path(path), rate, profile)
    document = read_document(Path(text))
    for one in artifacts:
        sha256 = hash_records(list_files(one.path)) if one.path.is_dir() else hash_file(one.path)
        for model in document.bench.values():
            if model.file.sha256 == sha256:
                row = max(model.rows, key=lambda row: row.decode_tokens_per_s)
                return Anchor(
                    label=f"{one.name} on {document.machine.cpu or 'the phone'}",
                    traffic=costs[one.name],
                    depth_tokens=row.prompt_tokens,
                    threads=row.threads,
                    decode_tokens_per_s=row.decode_tokens_per_s,
                    prefill_tokens_per_s=row.prefill_tokens_per_s,
                )
    raise ArtifactError(
        f"`{text}` was measured on none of these files",
        hint="measure one of them on the phone, or write `MODEL=RATE` with a model that is here",
        path=text,
    )


def _stated_rate(path: Path, rate: str, profile: Profile) -> Anchor:
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise RecipeError(
            f"`{rate}` is no rate in tokens a second (`--anchor`)", hint="as in student-q4_0.gguf=25.5"
        )
    return Anchor(
        label=f"{path.name} at {value:g} tokens/s",
        traffic=traffic_of(path),
        depth_tokens=0,
        threads=profile.threads,
        decode_tokens_per_s=value,
        prefill_tokens_per_s=None,
    )
