from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ammd.runtime.validity import (
    OUTSIDE,
    RULE,
    Judgement,
    Validity,
    judge,
    outside,
    process_spread,
    rule_as_json,
    steadiness,
    together,
)


@pytest.mark.parametrize("name", list(RULE))
def test_each_share_is_held_against_both_of_its_limits(name: str) -> None:
    limit = RULE[name]
    assert 0 < limit.noisy < limit.invalid
    for share, expected in (
        (0.0, Validity.GOOD),
        (limit.noisy, Validity.GOOD),
        (limit.noisy + 0.001, Validity.NOISY),
        (limit.invalid, Validity.NOISY),
        (limit.invalid + 0.001, Validity.INVALID),
        (None, Validity.GOOD),  # what nobody knows speaks against nothing
    ):
        found = judge({name: share})
        assert (found.validity, len(found.reasons)) == (expected, int(expected is not Validity.GOOD))


def test_reason_names_the_share_and_the_limit() -> None:
    found = judge({"competing_share": 0.31, "steal_share": 0.0})
    noisy = f"{RULE['competing_share'].noisy:.0%}"
    assert found.reasons == (f"31.0% of all cores' time went to other processes, {noisy} is allowed",)


def test_whole_is_as_bad_as_its_worst_part_and_names_each_reason_once() -> None:
    parts = [judge({"drift": 0.4}), judge({}), judge({"drift": 0.5, "steal_share": 0.5})]
    found = together(parts)
    assert found.over == {"drift": 0.5, "steal_share": 0.5}
    assert found.validity is Validity.INVALID
    assert together([]) == Judgement()
    assert together([]).validity is Validity.GOOD


def test_drift_is_between_halves_and_outliers_are_from_the_median() -> None:
    assert steadiness([1.0, 1.0, 5.0, 1.2, 1.2]) == {
        "drift": pytest.approx(0.2),  # the middle one belongs to neither half
        "outlier_share": pytest.approx(1 / 5),  # a sixth under the median is near enough
    }
    assert steadiness([2.0] * 4) == {"drift": 0, "outlier_share": 0}
    assert steadiness([2.0, 1.0]) == {"drift": None, "outlier_share": None}
    slower, faster = steadiness([1.0, 1.0, 2.0, 2.0]), steadiness([2.0, 2.0, 1.0, 1.0])
    assert (slower["drift"], faster["drift"]) == (1.0, 0.5)


def test_spread_is_from_process_to_process() -> None:
    assert process_spread([[1.0, 9.0, 1.0], [1.1], [1.2]]) == {
        "process_spread": pytest.approx((1.2 - 1.0) / 1.1)
    }
    assert process_spread([[1.0, 2.0]]) == {"process_spread": None}


def test_rule_stands_in_the_document_with_every_limit() -> None:
    rule = json.loads(json.dumps(rule_as_json()))
    assert rule["competing_share"]["noisy"] == RULE["competing_share"].noisy
    assert set(rule) == {*RULE, "outlier", "least_passes", "least_seconds"}


def test_too_short_a_time_says_nothing_of_others() -> None:
    shares = dict.fromkeys(OUTSIDE, 0.8)
    assert outside(shares | {"seconds": 0.5}) == shares
    assert outside(shares | {"seconds": 0.004}) == dict.fromkeys(OUTSIDE)


def test_page_states_the_limits_of_the_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "fields.md"
    rows = re.findall(r"^\| `(\w+)` \| (\d+) % \| (\d+) % \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    stated = {name: (int(noisy) / 100, int(invalid) / 100) for name, noisy, invalid in rows}
    assert stated == {name: (limit.noisy, limit.invalid) for name, limit in RULE.items()}
