"""Making a student narrower, held against the whole model with the same parts silenced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ammd.distill.batches import build_batch
from ammd.distill.width import (
    channel_importance,
    check_channels,
    check_groups,
    cut_channels,
    cut_groups,
    group_importance,
    most_important,
    possible_groups,
)
from ammd.errors import DistillError
from ammd.kv_cache import cache_argument, run_shared

BATCH = build_batch([((1, 20, 30), (40, 2)), ((1, 50), (60, 70, 75, 79, 2))])  # the first is padded
LAYERS, CHANNELS, GROUPS, HEADS_EACH, HEAD_SIZE = 3, 96, 4, 2, 16
SIZES = {
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": CHANNELS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": GROUPS * HEADS_EACH,
    "num_key_value_heads": GROUPS,
}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),  # biases of queries, keys and values
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),  # norms of queries and keys
}
# The same sums with fewer terms, in another order: float32 rounding, of logits of about 5.
SAME = {"rtol": 1e-6, "atol": 1e-5}


def build(kind: str, **changes: Any) -> Any:
    """Return a random model in which every parameter is random, biases and norms too."""
    model_class, config_class, more = KINDS[kind]
    if kind != "qwen2":
        more = more | {"head_dim": HEAD_SIZE}
    else:
        more = more | {"num_attention_heads": 4, "num_key_value_heads": 2}  # it derives the head size
    model = model_class(config_class(**(SIZES | more | changes))).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=BATCH.token_ids, attention_mask=BATCH.attention_mask).logits
    return found[BATCH.attention_mask.bool()]


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_nothing_changes_no_bit(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    expected = logits(model)
    groups = model.config.num_key_value_heads
    cut_groups(model, [most_important(one, groups) for one in group_importance(model, BATCH)])
    cut_channels(model, [most_important(one, CHANNELS) for one in channel_importance(model, BATCH)])
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(reloaded(model, tmp_path)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_add_nothing_go_first_and_are_not_missed(kind: str) -> None:
    model = build(kind)
    idle = [torch.arange(layer, CHANNELS, 3) for layer in range(LAYERS)]  # 32 of 96, others in each layer
    with torch.no_grad():
        for layer, indices in zip(model.base_model.layers, idle, strict=True):
            layer.mlp.down_proj.weight[:, indices] = 0
    expected = logits(model)
    kept = [most_important(one, 64) for one in channel_importance(model, BATCH)]
    for layer in range(LAYERS):
        assert kept[layer].tolist() == [channel for channel in range(CHANNELS) if channel % 3 != layer]
    cut_channels(model, kept)
    assert model.config.intermediate_size == 64
    torch.testing.assert_close(logits(model), expected, **SAME)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_that_add_nothing_go_first_and_are_not_missed(kind: str) -> None:
    model = build(kind)
    groups = model.config.num_key_value_heads
    width = model.base_model.layers[0].self_attn.o_proj.in_features // groups
    idle = [layer % groups for layer in range(LAYERS)]
    with torch.no_grad():
        for layer, group in zip(model.base_model.layers, idle, strict=True):
            layer.self_attn.o_proj.weight[:, group * width : (group + 1) * width] = 0
    expected = logits(model)
    kept = [most_important(one, groups - 1) for one in group_importance(model, BATCH)]
    assert [indices.tolist() for indices in kept] == [
        [group for group in range(groups) if group != one] for one in idle
    ]
    cut_groups(model, kept)
    torch.testing.assert_close(logits(model), expected, **SAME)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_heads_do_what_they_did_in_the_whole_model(kind: str, tmp_path: Path) -> None:
    """Silencing the output of the heads that go is the reference; it touches no query, key or value."""
    model, whole = build(kind), build(kind)
    groups = model.config.num_key_value_heads
    head_size = model.base_model.layers[0].self_attn.head_dim
    heads_each = model.config.num_attention_heads // groups
    kept = [torch.tensor([layer % groups]) for layer in range(LAYERS)]
    with torch.no_grad():
        for layer, (group,) in zip(whole.base_model.layers, kept, strict=True):
            for head in range(groups * heads_each):
                if head // heads_each != group:
                    layer.self_attn.o_proj.weight[:, head * head_size : (head + 1) * head_size] = 0
    cut_groups(model, kept)
    torch.testing.assert_close(logits(model), logits(whole), **SAME)
    config = model.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (
        1,
        heads_each,
        head_size,
    )
    again = reloaded(model, tmp_path)
    assert again.config.head_dim == head_size
    assert torch.equal(logits(again), logits(model))


def test_importance_is_the_size_of_what_a_part_adds() -> None:
    """Counted part by part and token by token from what the layer itself puts out; padding does not count."""
    model = build("llama", attention_bias=False, mlp_bias=False)
    layer = model.base_model.layers[0]
    mask = BATCH.attention_mask.bool()
    expected: dict[str, list[float]] = {}
    whole = {"mlp": layer.mlp.down_proj, "self_attn": layer.self_attn.o_proj}
    for name, parts, width in (("mlp", CHANNELS, 1), ("self_attn", GROUPS, HEADS_EACH * HEAD_SIZE)):
        weight = whole[name].weight.detach().clone()
        expected[name] = []
        for part in range(parts):
            added: list[torch.Tensor] = []
            with torch.no_grad():
                whole[name].weight.zero_()
                columns = slice(part * width, (part + 1) * width)
                whole[name].weight[:, columns] = weight[:, columns]
            # The first layer: what its attention gets is the same whatever its own weights are.
            hook = whole[name].register_forward_hook(lambda _m, _i, output, added=added: added.append(output))
            logits(model)
            hook.remove()
            expected[name].append(float(added[0][mask].square().sum(1).mean().sqrt()))
        with torch.no_grad():
            whole[name].weight.copy_(weight)
    channels, groups = channel_importance(model, BATCH)[0], group_importance(model, BATCH)[0]
    torch.testing.assert_close(channels, torch.tensor(expected["mlp"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(groups, torch.tensor(expected["self_attn"]), rtol=1e-5, atol=1e-6)
    assert not layer.mlp.down_proj._forward_pre_hooks


def test_a_narrow_student_decodes_with_its_cache_as_without() -> None:
    model = build("qwen3")
    cut_groups(model, [torch.tensor([1, 3])] * LAYERS)
    cut_channels(model, [torch.arange(32)] * LAYERS)
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    with torch.inference_mode():
        past = run_shared(model, ids[:, :3], rows=1)
        rest = model(input_ids=ids[:, 3:], **past).logits
        whole = model(input_ids=ids).logits
    torch.testing.assert_close(rest, whole[:, 3:], **SAME)
    assert past[cache_argument(model)].layers[0].keys.shape[1] == 2


def test_the_most_important_keep_their_order_and_the_first_of_equals_stays() -> None:
    assert most_important(torch.tensor([0.1, 5.0, 0.3, 0.3, 7.0]), 3).tolist() == [1, 2, 4]


def test_key_value_heads_are_as_many_as_blocks_and_config_allow() -> None:
    """Eight heads of 16, two to a group: 32 wide each; Llama's config wants heads to divide 64."""
    assert possible_groups(build("llama")) == [1, 2, 4]
    assert possible_groups(build("qwen3")) == [1, 2, 3, 4]
    narrow = build("qwen3", num_attention_heads=3, num_key_value_heads=3)
    assert possible_groups(narrow) == [2, 3]  # 32 wide; and what the teacher has, 48 wide or not


@pytest.mark.parametrize("groups", [3, 5])
def test_an_impossible_number_of_key_value_heads_is_refused(groups: int) -> None:
    with pytest.raises(
        DistillError, match=f"a student of `{groups}` key-value heads cannot be cut"
    ) as caught:
        check_groups(build("llama"), groups)
    assert caught.value.hint == "set `prepare.student.key_value_heads` to one of 1, 2, 4"


def test_more_channels_than_there_are_are_refused() -> None:
    with pytest.raises(
        DistillError, match="a student of `128` feed-forward channels cannot be cut"
    ) as caught:
        check_channels(build("llama"), 128)
    assert caught.value.hint == "set `prepare.student.intermediate_size` to at most 96"


def test_layers_of_another_build_are_refused_by_name() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(
        DistillError, match=r"`GPT2LMHeadModel` narrower: its layers' `mlp` is missing"
    ) as caught:
        check_channels(gpt2, 32)
    assert 'kind = "depth"' in caught.value.hint
    # OLMo 2 norms all query heads together, so none of them can go alone; its feed-forward part is a known one.
    olmo = Olmo2ForCausalLM(Olmo2Config(**SIZES))
    with pytest.raises(DistillError, match="its layers' `self_attn` is a `Olmo2Attention` of another build"):
        check_groups(olmo, 2)
    check_channels(olmo, 32)


def test_a_feed_forward_part_with_more_in_it_is_refused() -> None:
    model = build("llama")
    model.base_model.layers[1].mlp.norm = torch.nn.LayerNorm(CHANNELS)
    with pytest.raises(DistillError, match="its layers' `mlp` is a `LlamaMLP` of another build"):
        check_channels(model, 32)
