"""Which objectives need one tokenizer for teacher and student."""

from __future__ import annotations

from typing import get_args

from .critic_settings import LearnedCritic
from .settings import Ammd, MiniLLM, Objective


def needs_one_tokenizer(objective: Objective) -> tuple[str, str] | None:
    """Return why a student of another tokenizer cannot descend `objective`, and what to do; None where it can."""
    if isinstance(objective, MiniLLM):
        kinds = (get_args(one.model_fields["kind"].annotation)[0] for one in get_args(get_args(Objective)[0]))
        fitting = [kind for kind in kinds if kind != objective.kind]
        return (
            "draws each token from both models at once, which takes one tokenizer",
            f"for a student with a tokenizer of its own take one of {', '.join(fitting)}",
        )
    critic = objective.critic if isinstance(objective, Ammd) else None
    if isinstance(critic, LearnedCritic) and critic.start == "difference":
        return (
            "has a critic that starts from the difference of logits, which takes one tokenizer",
            'set `distill.objective.critic.start = "log_ratio"`',
        )
    return None
