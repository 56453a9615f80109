"""The steps of TRL's GKD trainer that `step.py` sets beside ours; imports nothing of ours, so any interpreter will do.

    python benchmarks/trl_step.py WORK_DIR --name NAME --steps STEPS

Reads what `step.py` prepared in WORK_DIR and leaves its sample there.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROWS = 8  # on-policy, a step
RESPONSE_TOKENS = 64
SAMPLE = "sample.json"
TRL: Mapping[str, dict[str, Any]] = {"gkd": {}, "gkd, checkpointed": {"gradient_checkpointing": True}}


def main() -> None:
    """Take the steps of one cell and leave its sample."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--name", choices=TRL, required=True)
    parser.add_argument("--steps", type=int, required=True, help="that are measured")
    arguments = parser.parse_args()
    leave_sample(arguments.work, functools.partial(train, arguments.work, arguments.name, arguments.steps))


def leave_sample(work: Path, measure: Callable[[], dict[str, float]]) -> None:
    """Measure, and leave in `work` what was found with the peak memory of this process."""
    sample = measure()
    sample["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (work / SAMPLE).write_text(json.dumps(sample), encoding="utf-8")


class Clock:
    """Seconds spent in wrapped functions since the last reset."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, function: str, name: str | Callable[[Any], str]) -> None:
        """Time a function of `owner` under `name`, or under what `name` says of its first argument."""
        inner = getattr(owner, function)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                label = name if isinstance(name, str) else name(args[0])
                self.seconds[label] += time.perf_counter() - started

        setattr(owner, function, timed)


def train(work: Path, name: str, steps: int) -> dict[str, float]:
    """Run TRL's GKD trainer, fully on-policy; the first step is not counted."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    prepared = work / "prepared"
    lines = (prepared / "train.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        for row in examples
    ]
    clock = Clock()
    stamps: list[float] = []
    tokens: list[int] = []

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            stamps.append(time.perf_counter())

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            stamps.append(time.perf_counter())

    class Counting(GKDTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens.append(int((inputs["labels"] != -100).sum()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    clock.wrap(Counting, "generate_on_policy_outputs", "rollout")
    Counting.generate_on_policy_outputs = staticmethod(Counting.generate_on_policy_outputs)
    teacher = AutoModelForCausalLM.from_pretrained(prepared / "teacher", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(prepared / "teacher")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(prepared / "student", dtype=torch.float32),
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=ROWS,
            max_steps=1 + steps,
            max_new_tokens=RESPONSE_TOKENS,
            lmbda=1.0,
            beta=0.5,
            temperature=1.0,
            learning_rate=1e-5,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **{"gradient_checkpointing": False, **TRL[name]},
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"messages": chats}),
        callbacks=[Stamps()],
    )
    clock.wrap(trainer.teacher_model, "forward", "teacher")
    trainer.train()
    seconds = [stamps[place + 1] - stamps[place] for place in range(0, len(stamps), 2)]
    return {
        "step_s": statistics.mean(seconds[1:]),
        "tokens_per_s": sum(tokens) / sum(seconds),
        "rollout_share": clock.seconds["rollout"] / sum(seconds),
        "teacher_share": clock.seconds["teacher"] / sum(seconds),
    }


if __name__ == "__main__":
    main()
