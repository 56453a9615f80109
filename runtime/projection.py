"""What a file's speed on a phone will be, from its bytes, the phone's hardware and published figures; never measured.

Decode reads every weight once a token, so its rate is a share of the memory's peak bandwidth over the bytes of a token;
a prompt is computed, so prefill is a number of operations in each cycle of the cores over the operations of a token.
Both shares come from published figures of other phones (`[calibration]` in profiles.toml, which
benchmarks/projection.py makes), so a projection is an interval, and a wide one: phones of the same hardware differ. One
measurement on the same phone replaces the share by the phone's own, and the interval by how far files on one phone
differ.

A burst is projected: phones slow down when they get warm. Models under 200 million weights lie in part in a cache, and
what happens between their layers counts; their interval reaches as far as the published figures of such models do.

Source: roofline, Williams, Waterman and Patterson 2009; its two roofs are taken one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .profiles import Calibration, Profile
from .traffic import Traffic

CLASS_BITS = (
    7.0  # a weight: 4-bit files are held up by unpacking, 8-bit ones by memory, and so reach another share
)
FLOAT_BITS = 12.0  # no prefill is projected above: too few figures
SMALL_PARAMETERS = 200e6
COVERAGE = 0.8  # of the intervals
NEEDED_FEATURE = "i8mm"  # all published prefill rates are of SoCs that have it


class Metric(Enum):
    """What is projected."""

    DECODE = "decode_tokens_per_s"
    PREFILL = "prefill_tokens_per_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What was measured on the same phone; None where it was not."""

    label: str
    traffic: Traffic
    depth_tokens: int
    threads: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Projected:
    """A rate that nobody has measured."""

    metric: Metric
    rate: float
    low: float
    high: float
    basis: str  # where it comes from, in words


def project(
    profile: Profile,
    traffic: Traffic,
    calibration: Calibration,
    *,
    depth_tokens: int,
    anchor: Anchor | None = None,
) -> tuple[Projected, ...]:
    """Return decode and, where figures allow it, prefill of a file on a phone.

    Args:
        profile: The phone.
        traffic: Of the file.
        calibration: From the published figures.
        depth_tokens: Positions in the cache when a token is decoded.
        anchor: Measured on the same phone.
    """
    found = [_decode(profile, traffic, calibration, depth_tokens, anchor)]
    if prefill_fault(profile, traffic) is None:
        found.append(_prefill(profile, traffic, calibration, anchor))
    return tuple(found)


def prefill_fault(profile: Profile, traffic: Traffic) -> str | None:
    """Return why no prefill can be projected; None if one can."""
    if NEEDED_FEATURE not in profile.features:
        return f"no published prefill rate of a SoC without {NEEDED_FEATURE}"
    if traffic.bits_per_weight > FLOAT_BITS:
        return "too few published prefill rates of float files"
    return None


def decode_share(profile: Profile, traffic: Traffic, *, rate: float, depth_tokens: int) -> float:
    """Return the share of the peak bandwidth at which `rate` is reached."""
    return rate * _token_bytes(traffic, depth_tokens) / profile.bandwidth_bytes_per_s


def prefill_share(profile: Profile, traffic: Traffic, *, rate: float, threads: int) -> float:
    """Return the operations a cycle of a core at which `rate` is reached."""
    return rate * _token_operations(traffic) / profile.cycles_per_s(threads)


def is_8bit(traffic: Traffic) -> bool:
    """Tell the class of a file's decode."""
    return traffic.bits_per_weight > CLASS_BITS


def _decode(
    profile: Profile, traffic: Traffic, calibration: Calibration, depth_tokens: int, anchor: Anchor | None
) -> Projected:
    wide = is_8bit(traffic)
    shares = (calibration.decode_4bit, calibration.decode_8bit)
    share, factor = shares[wide], calibration.decode_factor
    low, high = 1 / factor, factor
    basis = f"published rates of {calibration.decode_devices} devices"
    if anchor:
        other = is_8bit(anchor.traffic)
        own = decode_share(
            profile, anchor.traffic, rate=anchor.decode_tokens_per_s, depth_tokens=anchor.depth_tokens
        )
        share = own * shares[wide] / shares[other]
        same = calibration.decode_anchored_factor
        factor = same if wide == other else calibration.decode_anchored_class_factor
        low, high, basis = 1 / factor, factor, f"measured there: {anchor.label}"
    if is_small(traffic) and not (anchor and is_small(anchor.traffic)):
        low, high = min(low, calibration.small_low), max(high, calibration.small_high)
        basis += "; a small model"
    rate = share * profile.bandwidth_bytes_per_s / _token_bytes(traffic, depth_tokens)
    return Projected(metric=Metric.DECODE, rate=rate, low=low * rate, high=high * rate, basis=basis)


def _prefill(
    profile: Profile, traffic: Traffic, calibration: Calibration, anchor: Anchor | None
) -> Projected:
    shares = (calibration.prefill_block, calibration.prefill_k_quant)
    share, factor = shares[traffic.has_k_quants], calibration.prefill_factor
    basis = f"published rates of {calibration.prefill_devices} devices"
    if anchor and anchor.prefill_tokens_per_s:
        other = anchor.traffic.has_k_quants
        own = prefill_share(profile, anchor.traffic, rate=anchor.prefill_tokens_per_s, threads=anchor.threads)
        share = own * shares[traffic.has_k_quants] / shares[other]
        same = calibration.prefill_anchored_factor
        factor = same if traffic.has_k_quants == other else calibration.prefill_anchored_class_factor
        basis = f"measured there: {anchor.label}"
    rate = share * profile.cycles_per_s(profile.threads) / _token_operations(traffic)
    return Projected(metric=Metric.PREFILL, rate=rate, low=rate / factor, high=rate * factor, basis=basis)


def is_small(traffic: Traffic) -> bool:
    """Tell whether a model is too small for its rate to follow from its bytes."""
    return traffic.parameters < SMALL_PARAMETERS


def _token_bytes(traffic: Traffic, depth_tokens: int) -> int:
    return traffic.weight_bytes_per_token + depth_tokens * traffic.kv_bytes_per_token


def _token_operations(traffic: Traffic) -> int:
    """A multiplication and an addition a weight; the head sees the last token alone."""
    return 2 * traffic.body_parameters
