"""The stages as data: where each one's code is, when its results go stale, and who acts when it breaks.

The parent process never imports a stage (that would load torch); it names the module and a fresh child
imports it. `code_version` is raised by hand whenever a stage would write other bytes from the same input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# glibc's allocator for batched torch work. Each step frees and takes the same buffers; handed back to the system every
# time, they cost eight million page faults in ten training steps and a third of the time (measured: 5.6 s a step
# without this, 3.7 s with it). Freed memory is kept, and asked for in huge pages; only blocks of 32 MiB and more,
# which would leave the largest gaps, go back at once. A variable, because the allocator reads it before the program
# starts; other C libraries ignore it. Not for a stage that measures memory.
KEEP_FREED_MEMORY: Mapping[str, str] = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.arena_max=1"
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: `module.run(inputs, settings, folder) -> results`, inputs of the class `inputs` there."""

    name: str
    module: str
    inputs: str
    code_version: int
    libraries: tuple[str, ...]  # distributions whose version changes the stage's output
    error: str  # class in ammd.errors for a failure that the stage did not name itself
    disk_bytes_per_parameter: float  # written, for each parameter of the teacher
    memory_bytes_per_parameter: float  # held at the peak, for each parameter of the teacher
    reads: tuple[str, ...] = ()  # stages whose output is part of its inputs
    alone: bool = False  # measures speed, so nothing else may run beside it
    environment: Mapping[str, str] = field(default_factory=dict)  # variables of its process
    shared: bool = False  # run together by as many processes as its settings' `processes` says
    resumable: bool = False  # its inputs have `resume`, a folder that outlives a killed stage
    tracked: bool = False  # its inputs have `track`, where it sends its curves


# Bytes per parameter: weights are written in 4 bytes at most (float32), a student never has more parameters
# than its teacher. prepare writes teacher and student; distill writes two students and a snapshot of 12 bytes beside
# the one before it, and holds weights, gradient and two Adam moments in float32 beside the teacher, and as much again
# in activations and rollouts (the quickstart peaked at 4.8 GiB, 38.5 bytes each); export writes f16, q8_0, q4_0, q4_k_m
# and int4 with unquantized embeddings and converts through a float32 copy.
_TABLE = (
    Stage(
        name="prepare",
        module="ammd.distill.prepare",
        inputs="PrepareInputs",
        code_version=5,
        libraries=("torch", "transformers"),
        error="DistillError",
        disk_bytes_per_parameter=8,
        memory_bytes_per_parameter=10,
        environment=KEEP_FREED_MEMORY,
    ),
    Stage(
        name="distill",
        module="ammd.distill.stage",
        inputs="DistillInputs",
        code_version=5,
        libraries=("torch", "transformers", "accelerate"),
        error="DistillError",
        disk_bytes_per_parameter=32,
        shared=True,
        resumable=True,
        tracked=True,
        memory_bytes_per_parameter=40,
        environment=KEEP_FREED_MEMORY,
        reads=("prepare",),
    ),
    Stage(
        name="export",
        module="ammd.export.stage",
        inputs="ExportInputs",
        code_version=7,
        libraries=("llama-cpp-python", "onnxruntime", "onnxruntime-genai", "optimum-onnx", "transformers"),
        error="ExportError",
        disk_bytes_per_parameter=6,
        memory_bytes_per_parameter=10,
        reads=("prepare", "distill"),
    ),
    Stage(
        name="verify",
        module="ammd.runtime.verify",
        inputs="VerifyInputs",
        code_version=2,
        libraries=("torch", "transformers", "llama-cpp-python", "onnxruntime-genai"),
        error="EngineError",
        disk_bytes_per_parameter=0,
        memory_bytes_per_parameter=8,
        reads=("prepare", "distill", "export"),
    ),
    Stage(
        name="evaluate",
        module="ammd.runtime.evaluate",
        inputs="EvaluateInputs",
        code_version=7,
        libraries=(
            "torch",
            "transformers",
            "llama-cpp-python",
            "onnxruntime-genai",
            "rouge-score",
            "sacrebleu",
        ),
        error="EngineError",
        disk_bytes_per_parameter=0,
        memory_bytes_per_parameter=10,
        resumable=True,
        environment=KEEP_FREED_MEMORY,
        reads=("prepare", "distill", "export"),
    ),
    Stage(
        name="bench",
        module="ammd.runtime.bench",
        inputs="BenchInputs",
        code_version=5,
        libraries=("torch", "transformers", "llama-cpp-python", "onnxruntime-genai"),
        error="EngineError",
        disk_bytes_per_parameter=0,
        memory_bytes_per_parameter=6,
        reads=("prepare", "distill", "export"),
        alone=True,
    ),
)

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _TABLE}
