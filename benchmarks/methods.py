"""The methods that are compared, each as an objective of the recipe with its own paper's settings.

All share texts, warm start, optimizer, batch, steps and the harness; what a method does not name keeps the recipe's
default. Learning rates are chosen for each method by the comparison itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An objective and the texts of its off-policy side."""

    objective: Mapping[str, Any]
    texts: str = "teacher"  # who wrote them: the teacher, or "given" with the data


METHODS: Mapping[str, Method] = {
    "sft": Method(objective={"kind": "sft"}, texts="given"),
    "seqkd": Method(objective={"kind": "sft"}),
    "forward_kl": Method(objective={"kind": "forward_kl"}),
    "reverse_kl": Method(objective={"kind": "reverse_kl"}),
    "imitkd": Method(objective={"kind": "forward_kl", "student_share": 0.5}),
    "gkd": Method(objective={"kind": "gjsd", "beta": 0.5, "student_share": 0.5}),
    "f_distill_tv": Method(objective={"kind": "tv"}),
    "skew_kl": Method(objective={"kind": "skew_kl"}),
    "skew_rkl": Method(objective={"kind": "skew_rkl"}),
    "distillm": Method(objective={"kind": "distillm"}),
    "minillm": Method(objective={"kind": "minillm"}),
    "le_cam": Method(objective={"kind": "le_cam"}),
    "ammd": Method(objective={"kind": "ammd", "discount": 0.5}),
    "ammd_learned": Method(
        objective={"kind": "ammd", "discount": 0.5, "critic": {"kind": "lowrank", "start": "log_ratio"}}
    ),
}
REFERENCE = "ammd"  # the others are compared with it, and its seconds are the budget of time
