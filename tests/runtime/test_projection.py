"""Profiles, and what is projected from them: against published figures of devices that a fit left out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ammd.errors import RecipeError
from ammd.runtime.profiles import find_profile, load_profiles
from ammd.runtime.projection import Anchor, Metric, Projected, prefill_fault, project
from ammd.runtime.traffic import Traffic

ROOT = Path(__file__).resolve().parent.parent.parent
CALIBRATION = load_profiles().calibration


def traffic(**changes: object) -> Traffic:
    facts = {
        "weight_bytes_per_token": 10**9,
        "kv_bytes_per_token": 10**5,
        "body_parameters": 1_600_000_000,
        "parameters": 1_700_000_000,
        "layers": 24,
        "has_k_quants": False,
    }
    return Traffic(**(facts | changes))  # type: ignore[arg-type]


def decode(name: str, cost: Traffic, *, depth_tokens: int = 0, anchor: Anchor | None = None) -> Projected:
    found = project(find_profile(name), cost, CALIBRATION, depth_tokens=depth_tokens, anchor=anchor)
    return next(one for one in found if one.metric is Metric.DECODE)


@pytest.fixture(scope="module")
def back_test() -> ModuleType:
    path = ROOT / "benchmarks" / "projection.py"
    spec = importlib.util.spec_from_file_location("back_test", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["back_test"] = module  # its data classes look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_calibration_is_what_the_benchmark_fits(back_test: ModuleType) -> None:
    assert back_test.calibration(back_test.read_points()) == CALIBRATION.model_dump()


def test_the_interval_holds_most_of_what_was_published_of_phones_left_out(back_test: ModuleType) -> None:
    for metric in Metric:
        points = [one for one in back_test.read_points() if one.metric is metric and not one.small]
        error = back_test.error_row(metric, back_test.left_out(points))
        assert error["inside"] >= 0.8
        assert error["devices"] >= 6


def test_a_fit_finds_shares_that_it_was_made_from(back_test: ModuleType) -> None:
    def point(device: str, share: float, *, second: bool) -> object:
        return back_test.Point(
            device=device, model="m", format="f", metric=Metric.DECODE, published=1.0, share=share,
            second=second, small=False,
        )  # fmt: skip

    points = [point(name, level * (1.5 if second else 1.0), second=second)
              for name, level in (("a", 0.2), ("b", 0.4), ("c", 0.8)) for second in (False, True)]  # fmt: skip
    found = back_test.fit(points)
    assert found.share(second=False) == pytest.approx(0.4)
    assert found.share(second=True) == pytest.approx(0.6)
    # t at 90 % with 2 degrees of freedom, the spread of log 2, and one more device to be seen
    assert found.factor == pytest.approx(2 ** (1.886 * (4 / 3) ** 0.5))
    assert back_test.anchored_ratios(points, crossed=True) == pytest.approx([1.0] * 6)


def test_projection_is_the_roofline() -> None:
    found = decode("pixel-8", traffic())
    assert found.rate == pytest.approx(CALIBRATION.decode_4bit * 68.0e9 / 1e9)
    assert found.low == pytest.approx(found.rate / CALIBRATION.decode_factor)
    assert found.high == pytest.approx(found.rate * CALIBRATION.decode_factor)
    deep = decode("pixel-8", traffic(), depth_tokens=10_000)  # as many bytes again
    assert deep.rate == pytest.approx(found.rate / 2)
    assert decode("raspberry-pi-5", traffic()).rate == pytest.approx(found.rate * 17.1 / 68)


def test_an_anchor_gives_its_own_rate_back_and_a_narrower_interval() -> None:
    anchor = Anchor(
        label="x", traffic=traffic(), depth_tokens=128, threads=4,
        decode_tokens_per_s=33.0, prefill_tokens_per_s=200.0,
    )  # fmt: skip
    found = project(find_profile("pixel-9"), traffic(), CALIBRATION, depth_tokens=128, anchor=anchor)
    assert [one.rate for one in found] == pytest.approx([33.0, 200.0])
    for one, free in zip(
        found, project(find_profile("pixel-9"), traffic(), CALIBRATION, depth_tokens=128), strict=True
    ):
        assert one.high / one.low < free.high / free.low
        assert one.basis == "measured there: x"


def test_an_anchor_of_the_other_class_is_reached_over_the_ratio_of_both() -> None:
    wide = traffic(weight_bytes_per_token=1_800_000_000)  # 8.5 bits a weight
    anchor = Anchor(
        label="x", traffic=wide, depth_tokens=0, threads=4, decode_tokens_per_s=20.0, prefill_tokens_per_s=None
    )  # fmt: skip
    found = decode("pixel-9", traffic(), anchor=anchor)
    step = CALIBRATION.decode_4bit / CALIBRATION.decode_8bit
    assert found.rate == pytest.approx(20.0 * 1.8 * step)


def test_small_models_have_the_interval_of_small_models() -> None:
    small = traffic(parameters=110_000_000, body_parameters=85_000_000, weight_bytes_per_token=65_000_000)
    found = decode("pixel-8", small)
    assert found.low == pytest.approx(CALIBRATION.small_low * found.rate)
    assert "small" in found.basis
    big = Anchor(
        label="x", traffic=traffic(), depth_tokens=0, threads=4, decode_tokens_per_s=33.0, prefill_tokens_per_s=None
    )  # fmt: skip
    assert decode("pixel-8", small, anchor=big).low == pytest.approx(
        CALIBRATION.small_low * decode("pixel-8", small, anchor=big).rate
    )


def test_no_prefill_where_nothing_was_published() -> None:
    cases = {
        "raspberry-pi-5": traffic(),
        "pixel-8": traffic(weight_bytes_per_token=2 * 1_700_000_000),  # float16
    }
    for name, cost in cases.items():
        profile = find_profile(name)
        assert prefill_fault(profile, cost)
        assert [one.metric for one in project(profile, cost, CALIBRATION, depth_tokens=0)] == [Metric.DECODE]


def test_every_number_of_a_profile_has_a_source_and_a_dozen_are_there() -> None:
    known = load_profiles().profile
    assert len(known) >= 12
    for profile in known.values():
        assert set(profile.sources) == {"cores", "bandwidth_gb_s", "ram_gb", "features"}
        assert all(profile.sources.values())


@pytest.mark.parametrize(
    ("name", "threads"),
    # OmniInfer measured five threads as the best on a Snapdragon 8 Gen 2; the rest are big cores by data sheet.
    [
        ("galaxy-s23", 5),
        ("snapdragon-695", 2),
        ("iphone-16", 2),
        ("raspberry-pi-5", 4),
        ("dimensity-8400", 4),
    ],
)
def test_threads_are_the_fast_cores(name: str, threads: int) -> None:
    assert find_profile(name).threads == threads


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no profile `pixel8`") as caught:
        find_profile("pixel8")
    assert "`pixel-8`" in caught.value.hint


def test_the_page_states_the_factors_that_are_in_force() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    facts = CALIBRATION
    assert f"{1 / facts.decode_factor:.2f} to\n{facts.decode_factor} times" in page
    assert f"decode ÷ and × {facts.decode_factor}, prefill {facts.prefill_factor}" in page
    assert f"reaches down to {facts.small_low}" in page
    anchored = {
        facts.decode_anchored_factor,
        facts.prefill_anchored_factor,
        facts.decode_anchored_class_factor,
    }
    assert anchored == {facts.prefill_anchored_class_factor} == {1.15}
    assert "÷ and × 1.15" in page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"prints the {len(load_profiles().profile)} phones and boards" in readme
