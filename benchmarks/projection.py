"""How far the projected rates of `ammd bench --profile` are from what was published, and the calibration behind them.

    python benchmarks/projection.py

Each device of `projection_points.toml` in turn is left out: the shares are fitted on the others, and its rates are
projected from them. `error` rows tell how far off that was (published / projected) and how many published rates lay in
the interval; `anchored` rows do so for one rate of a device from each other one of the same device. What is fitted on
all devices is `calibration`, which stands in runtime/profiles.toml too; a test holds the two together.

Nothing is measured and nothing drawn by chance: the same file comes out each time.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.runtime.profiles import Profile, load_profiles
from ammd.runtime.projection import (
    COVERAGE,
    Metric,
    decode_share,
    is_8bit,
    is_small,
    prefill_fault,
    prefill_share,
)
from ammd.runtime.traffic import Traffic

POINTS = Path(__file__).with_name("projection_points.toml")
_DIGITS = 3
# Student's t at 90 %, by degrees of freedom: a two-sided interval of 80 %.
_T = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A published rate as a share of its device's peak."""

    device: str
    model: str
    format: str
    metric: Metric
    published: float
    share: float
    second: bool  # of the second class: 8 bits in decode, k-quants in prefill
    small: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Log of the first class's share, what the second adds, and how far a device that was not seen may be off."""

    first: float
    step: float
    factor: float
    devices: int

    def share(self, *, second: bool) -> float:
        """Return the share of a class."""
        return math.exp(self.first + self.step * second)


def main() -> None:
    """Fit, test, write the result file."""
    from document import publish

    points = read_points()
    rows: list[dict[str, Any]] = []
    for metric in Metric:
        of_metric = [point for point in points if point.metric is metric and not point.small]
        rows += [error_row(metric, left_out(of_metric)), *anchored_rows(metric, of_metric)]
        rows += left_out(of_metric)
    publish("projection", rows, calibration=calibration(points), coverage=COVERAGE)


def read_points(path: Path = POINTS) -> list[Point]:
    """Return the published rates of both metrics."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    profiles = load_profiles().profile
    points = []
    for row in document["points"]["rows"]:
        device, model, form, prefill, decode, source = row
        profile = profiles[device]
        traffic = traffic_of(document["model"][model], document["format"][form])
        threads = document["source"][source].get("threads", profile.threads)
        named = {"device": device, "model": model, "format": form, "small": is_small(traffic)}
        points.append(_decode_point(profile, traffic, decode, named))
        if prefill and prefill_fault(profile, traffic) is None:
            points.append(
                Point(
                    **named,
                    metric=Metric.PREFILL,
                    published=prefill,
                    share=prefill_share(profile, traffic, rate=prefill, threads=threads),
                    second=traffic.has_k_quants,
                )
            )
    return points


def _decode_point(profile: Profile, traffic: Traffic, rate: float, named: Mapping[str, Any]) -> Point:
    share = decode_share(profile, traffic, rate=rate, depth_tokens=0)  # the cache is short in all of them
    return Point(**named, metric=Metric.DECODE, published=rate, share=share, second=is_8bit(traffic))


def traffic_of(model: Mapping[str, float], form: Mapping[str, Any]) -> Traffic:
    """Return what a token costs of a model whose file is not here."""
    body, head = model["body"] * 1e6, model["head"] * 1e6
    return Traffic(
        weight_bytes_per_token=round((body * form["body"] + head * form["head"]) / 8),
        kv_bytes_per_token=0,
        body_parameters=round(body),
        parameters=round(body + head),
        layers=int(model["layers"]),
        has_k_quants=form["k_quant"],
    )


def fit(points: Sequence[Point]) -> Fit:
    """Fit a share for each class: devices count alike, however many rates of them were published."""
    by_device = {device: list(found) for device, found in itertools.groupby(points, lambda one: one.device)}
    steps = [
        statistics.mean(second) - statistics.mean(first)
        for found in by_device.values()
        if (first := _logs(found, second=False)) and (second := _logs(found, second=True))
    ]
    step = statistics.mean(steps) if steps else 0.0
    levels, rests = [], []
    for found in by_device.values():
        values = [math.log(one.share) - step * one.second for one in found]
        levels.append(statistics.mean(values))
        rests += [value - levels[-1] for value in values]
    count = len(levels)
    within = sum(rest**2 for rest in rests) / max(1, len(rests) - count)
    spread = math.sqrt(statistics.variance(levels) * (1 + 1 / count) + within)
    return Fit(
        first=statistics.mean(levels), step=step, factor=math.exp(_T[count - 2] * spread), devices=count
    )


def left_out(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return each published rate beside what the other devices say of it."""
    rows = []
    for point in points:
        other = fit([one for one in points if one.device != point.device])
        ratio = point.share / other.share(second=point.second)
        rows.append(
            {
                "kind": "published",
                "metric": point.metric.value,
                "device": point.device,
                "model": point.model,
                "format": point.format,
                "published": point.published,
                "projected": point.published / ratio,
                "ratio": ratio,
                "factor": other.factor,
                "inside": 1 / other.factor <= ratio <= other.factor,
            }
        )
    return rows


def error_row(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how far projections of devices that were left out are off."""
    ratios = [row["ratio"] for row in rows]
    return {
        "kind": "error",
        "metric": metric.value,
        "devices": len({row["device"] for row in rows}),
        "rates": len(rows),
        "median_ratio": statistics.median(ratios),
        "median_error": statistics.median(_off(ratio) for ratio in ratios),
        "worst_low": min(ratios),
        "worst_high": max(ratios),
        "inside": sum(row["inside"] for row in rows) / len(rows),
    }


def anchored_rows(metric: Metric, points: Sequence[Point]) -> Iterable[dict[str, Any]]:
    """Yield how far one rate of a device is from what another rate of it says, in the same class and across both."""
    for crossed in (False, True):
        ratios = anchored_ratios(points, crossed=crossed)
        yield {
            "kind": "anchored",
            "metric": metric.value,
            "crossed": crossed,
            "pairs": len(ratios),
            "median_error": statistics.median(_off(ratio) for ratio in ratios),
            "worst_low": min(ratios),
            "worst_high": max(ratios),
            "factor": quantile_factor(ratios),
            "inside": sum(_off(one) + 1 <= quantile_factor(ratios) for one in ratios) / len(ratios),
        }


def anchored_ratios(points: Sequence[Point], *, crossed: bool) -> list[float]:
    """Return published / projected of each rate from each other one of its device.

    Across classes the step between them is fitted without that device.
    """
    ratios = []
    for anchor, target in itertools.permutations(points, 2):
        if anchor.device != target.device or (anchor.second != target.second) is not crossed:
            continue
        step = 0.0
        if crossed:
            step = fit([one for one in points if one.device != anchor.device]).step
        ratios.append(target.share / anchor.share / math.exp(step * (target.second - anchor.second)))
    return ratios


def quantile_factor(ratios: Sequence[float]) -> float:
    """Return the smallest factor within which `COVERAGE` of the ratios lie."""
    ordered = sorted(_off(ratio) + 1 for ratio in ratios)
    return ordered[math.ceil(COVERAGE * len(ordered)) - 1]


def calibration(points: Sequence[Point]) -> dict[str, float]:
    """Return what the product is told: `[calibration]` of profiles.toml."""
    found: dict[str, float] = {}
    names = {
        Metric.DECODE: ("decode_4bit", "decode_8bit"),
        Metric.PREFILL: ("prefill_block", "prefill_k_quant"),
    }
    for metric, (first, second) in names.items():
        of_metric = [point for point in points if point.metric is metric and not point.small]
        fitted = fit(of_metric)
        kind = metric.value.partition("_")[0]
        found |= {
            first: fitted.share(second=False),
            second: fitted.share(second=True),
            f"{kind}_devices": fitted.devices,
            f"{kind}_factor": fitted.factor,
            f"{kind}_anchored_factor": quantile_factor(anchored_ratios(of_metric, crossed=False)),
            f"{kind}_anchored_class_factor": quantile_factor(anchored_ratios(of_metric, crossed=True)),
        }
        if metric is Metric.DECODE:
            small = [one for one in points if one.small and one.metric is metric]
            ratios = [one.share / fitted.share(second=one.second) for one in small]
            found |= {"small_low": min(ratios), "small_high": max(ratios)}
    wider = tomllib.loads(POINTS.read_text(encoding="utf-8"))["wider"]["anchored_factor"]
    found |= {name: max(value, wider) for name, value in found.items() if "_anchored_" in name}
    return {name: _round(value) for name, value in found.items()}


def _logs(points: Iterable[Point], *, second: bool) -> list[float]:
    return [math.log(point.share) for point in points if point.second is second]


def _off(ratio: float) -> float:
    """Return how far off a ratio is, up or down alike: 0.25 for 1.25 and for 0.8."""
    return max(ratio, 1 / ratio) - 1


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
