"""The in-place cache against a pass without one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from ammd.kv_cache import InPlaceLayer, build_cache, cache_argument


def test_cache_is_in_place_and_gives_the_logits_of_a_full_pass(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 20, 30, 40, 50, 60]])
    cache = build_cache(model, capacity_tokens=8)
    assert all(isinstance(layer, InPlaceLayer) for layer in cache.layers)
    with torch.inference_mode():
        whole = model(input_ids=ids).logits[:, -1]
        model(input_ids=ids[:, :4], use_cache=True, **{cache_argument(model): cache})
        stepwise = model(input_ids=ids[:, 4:], use_cache=True, **{cache_argument(model): cache}).logits[:, -1]
    torch.testing.assert_close(stepwise, whole, rtol=1e-4, atol=1e-5)  # another order of summation
