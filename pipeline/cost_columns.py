"""What a run cost, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One kind of cost."""

    key: str
    title: str
    unit: str
    per_unit: float
    digits: int


COSTS = (
    Cost(key="seconds", title="time", unit="min", per_unit=60, digits=1),
    Cost(key="cpu_seconds", title="CPU time", unit="h", per_unit=3600, digits=2),
    Cost(key="peak_rss_bytes", title="peak RSS", unit="MiB", per_unit=2**20, digits=0),
    Cost(key="generated_tokens", title="generated", unit="tokens", per_unit=1, digits=0),
    Cost(key="trained_tokens", title="trained on", unit="tokens", per_unit=1, digits=0),
    Cost(key="joules", title="energy", unit="kJ", per_unit=1000, digits=1),
)


def costs_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return what is known of a run's costs by key; time and memory are of every run."""
    whole = {key: summary.get(key) for key in ("seconds", "peak_rss_bytes")}
    found = whole | (summary.get("costs") or {})
    return {
        cost.key: float(value)
        for cost in COSTS
        if isinstance(value := found.get(cost.key), int | float) and not isinstance(value, bool)
    }


def show_cost(value: float | None, cost: Cost) -> str:
    """Return the number in its unit, without the unit's name."""
    return "–" if value is None else f"{value / cost.per_unit:,.{cost.digits}f}"
