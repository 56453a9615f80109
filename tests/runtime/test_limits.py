"""Limits by scheme."""

from __future__ import annotations

from ammd.export.schemes import Scheme, needs_imatrix
from ammd.runtime.limits import KL_LIMITS, kl_limits


def test_limits_are_of_schemes_that_are_made_and_none_of_those_that_lose_much() -> None:
    schemes = {scheme.value: scheme for scheme in Scheme}
    assert set(KL_LIMITS) <= set(schemes)
    assert not [name for name in KL_LIMITS if needs_imatrix(schemes[name])]


def test_a_recipes_own_limit_goes_before_the_table() -> None:
    found = kl_limits({"gguf-q8_0": 1e-3, "mine": 2.0})
    assert found["gguf-q8_0"] == 1e-3
    assert found["mine"] == 2.0
    assert found["gguf-f16"] == KL_LIMITS["gguf-f16"]
    assert kl_limits({}) == KL_LIMITS
