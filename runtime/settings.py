"""Settings of the three stages that look at finished models. Importing them costs pydantic only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ammd.settings import Settings

from .llama_options import KvType


class VerifySettings(Settings):
    """How closely each exported file is compared with the checkpoint it was made from."""

    texts: int = Field(default=16, ge=1)
    """Held-out texts on which distributions are compared, from the front of the file."""

    greedy_prompts: int = Field(default=20, ge=1)
    """Held-out prompts whose greedy text must be the same."""

    greedy_tokens: int = Field(default=64, ge=1)
    """Tokens of greedy text a prompt."""

    kl_limit_nats: Mapping[str, float] = Field(default={})
    """Highest mean KL(checkpoint || file) a token, by artifact name; others keep the limit of their scheme
    (`ammd/runtime/limits.py`), if it has one."""


class EvaluateSettings(Settings):
    """How the quality of checkpoints and exported files is measured."""

    prompts: int = Field(default=48, ge=1)
    """Held-out prompts that checkpoints answer, from the front of the file."""

    sampled_prompts: int = Field(default=48, ge=1)
    """Of these, how many checkpoints also answer at temperature 1."""

    file_prompts: int = Field(default=12, ge=1)
    """Held-out prompts that exported files answer: they run one sequence at a time."""

    kl_texts: int = Field(default=16, ge=1)
    """Held-out prompts on whose texts, the teacher's and the model's own, the distance to the teacher is measured."""

    answer_tokens: int = Field(default=64, ge=1)
    """Longest answer; never longer than the longest held-out response."""

    seed: int = Field(default=0, ge=0)
    """Seed of the sampled answers."""

    tasks: tuple[str, ...] = ()
    """Language tasks that every model answers as well, packaged ones or paths of .toml files (docs/tasks.md); of their
    test splits."""

    task_rows: int | None = Field(default=None, ge=1)
    """Ask no more rows of each task than this; absent, the task's own number."""

    data: str | None = None
    """Folder with the tasks' data; the pipeline passes the recipe's own."""


class LlamaSettings(Settings):
    """What llama.cpp is told; proofs, answers and chats keep the defaults."""

    flash_attention: bool = True
    """Attention as one operator."""

    kv_type: KvType = KvType.F16
    """Type of keys and values; the quantized ones need `flash_attention`."""

    batch: int = Field(default=512, ge=1)
    """Tokens of a prompt that are handed over at once."""

    micro_batch: int = Field(default=512, ge=1)
    """Of these, tokens that are computed at once; never more than `batch`."""

    mmap: bool = False
    """Map the file instead of reading it; weights that are repacked then lie in memory beside the file's own pages."""

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.kv_type in (KvType.Q8_0, KvType.Q4_0) and not self.flash_attention:
            raise ValueError(f"`kv_type = {self.kv_type.value}` needs `flash_attention = true`")
        return self


class BenchSettings(Settings):
    """How speed and memory are measured."""

    threads: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | Literal["sweep"] = (
        1,
        0,
    )
    """Thread counts, each measured in processes of its own; 0 stands for all cores this process may use. `sweep` tries
    counts up to the physical cores among them, and the fastest one is the model's."""

    prompt_tokens: int = Field(default=128, ge=1)
    """Length of the prompt, in real text."""

    decode_tokens: int = Field(default=64, ge=2)
    """Tokens decoded after it."""

    depths: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Context depths, each measured in processes of its own: tokens of real text that are read before the decoded ones;
    0 stands for `prompt_tokens`."""

    processes: int = Field(default=3, ge=1)
    """Fresh processes for each model and thread count, at least; a comparison with a baseline needs 3."""

    max_processes: int = Field(default=5, ge=1)
    """More processes follow, up to this many, while the intervals of all processes together are too wide. Here and
    below, a maximum under its minimum counts as the minimum."""

    retries: int = Field(default=2, ge=0)
    """Processes of a model and thread count, at most, that are measured again because others disturbed them."""

    repetitions: int = Field(default=5, ge=1)
    """Measured passes in each process, at least; the median over all is reported with its spread."""

    max_repetitions: int = Field(default=30, ge=1)
    """And at most."""

    min_seconds: float = Field(default=2.0, ge=0)
    """How long the measured passes of a process last, at least."""

    max_seconds: float = Field(default=20.0, ge=0)
    """After this many no further pass begins, once there are `repetitions`."""

    target_interval: float = Field(default=0.02, ge=0)
    """Enough is measured when half the 95 % intervals of both medians, prefill and decode, are at most this share."""

    warmup: int = Field(default=1, ge=0)
    """Passes before the first measured one, at least."""

    max_warmup: int = Field(default=10, ge=0)
    """And at most: the warm-up ends once two passes in succession agree with the two before them within 3 %."""

    cold_loads: int = Field(default=3, ge=0)
    """How often each model is opened with its files dropped from the page cache, and then once more with them in it."""

    bandwidth: bool = True
    """Measure how fast this machine reads memory, and with it how fast decoding could be at most."""

    llama: LlamaSettings = LlamaSettings()
    """How GGUF files are run."""

    profiles: tuple[str, ...] = ()
    """Phones under whose limits each exported file is run too, and for which its speed is projected
    (`ammd bench --profile list`). Both stand apart from what is measured without limits."""

    @field_validator("profiles")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names:
            from .profiles import load_profiles

            unknown = [name for name in names if name not in load_profiles().profile]
            if unknown:
                raise ValueError(f"no profile `{unknown[0]}`; `ammd bench --profile list` prints all")
        return names
