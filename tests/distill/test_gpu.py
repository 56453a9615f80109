"""A GPU trains what a CPU does. Skipped where torch finds no CUDA GPU; each training is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.pipeline.toml_text import write_toml


def environment() -> dict[str, str]:
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    gpus = os.environ["AMMD_TEST_GPUS"]  # as the shell had them: `tests/conftest.py`
    return shown if gpus == "all" else shown | {"CUDA_VISIBLE_DEVICES": gpus}


def has_gpu() -> bool:
    if not torch.backends.cuda.is_built():
        return False
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


pytestmark = pytest.mark.skipif(not has_gpu(), reason="torch finds no CUDA GPU")

BASE: dict[str, Any] = {"batch_size": 8, "precision": "float32", "chunk_tokens": 16, "warm": {"steps": 3}}
CRITIC = {"start": "log_ratio", "ascent_tokens": 32, "min_share": 0.0}


def trained(prepared: Path, settings: dict[str, Any], *more: str, device: str) -> Path:
    (prepared.parent / f"{device}.toml").write_text(write_toml(settings | {"device": device}))
    out = prepared.parent / device
    command = [sys.executable, "-P", "-m", "ammd.distill", str(prepared), str(out)]
    command += ["--settings", str(prepared.parent / f"{device}.toml"), *more]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    "more",
    [
        {"objective": {"kind": "ammd", "steps": 6, "discount": 0.5, "rollout_reuse_steps": 2}},
        {"objective": {"kind": "ammd", "steps": 6, "critic": {"kind": "lowrank", **CRITIC}}},
        {"objective": {"kind": "ammd", "steps": 6, "critic": {"kind": "linear", **CRITIC}}},
        {"objective": {"kind": "minillm", "steps": 4}},
        {
            "objective": {
                "kind": "distillm",
                "steps": 8,
                "check_steps": 1,
                "validation_texts": 5,
                "tolerance": 0.0,
            }
        },
        {"objective": {"kind": "gjsd", "steps": 6}, "micro_batch_size": 3, "checkpoint_activations": True},
        {"objective": {"kind": "gjsd", "steps": 6}, "quantize_as": "gguf-q4_0"},
        {"objective": {"kind": "gjsd", "steps": 6}, "lora": {"rank": 4}},
    ],
    ids=["ammd", "lowrank", "linear", "minillm", "distillm", "pieces", "rounded", "adapters"],
)
def test_a_gpu_trains_what_a_cpu_does(check_same: Any, small_prepared: Path, more: dict[str, Any]) -> None:
    one, other = (trained(small_prepared, {**BASE, **more}, device=device) for device in ("cpu", "cuda"))
    # A critic's first gradients are nearly nought, and Adam makes whole steps of their rounding.
    learned = "critic" in more["objective"]
    tolerance, moved_share = (0.1, None) if learned else (5e-3, 0.05)
    steps = 3 + more["objective"]["steps"]
    check_same(small_prepared, one, other, steps=steps, tolerance=tolerance, moved_share=moved_share)
