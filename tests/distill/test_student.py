"""Which student prepare makes of a teacher, what it refuses before any work, and what it says of sizes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ammd.distill import prepare
from ammd.distill.batches import TokenPair
from ammd.distill.checkpoint import load_model, load_tokenizer
from ammd.distill.depth import cut_layers
from ammd.distill.settings import PrepareSettings
from ammd.distill.student import measured_batch, size_warnings, write_student
from ammd.distill.student_settings import WidthStudent
from ammd.distill.width import (
    channel_importance,
    cut_channels,
    cut_groups,
    group_importance,
    most_important,
)
from ammd.errors import DistillError

PAIRS: list[TokenPair] = [((1, 20 + index, 30), (40 + index, 50, 2)) for index in range(6)]
NO_LAYERS = {"num_hidden_layers": 1, "vocab_size": 8}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}


def prepared(checkpoint: Path, folder: Path, student: dict[str, Any]) -> dict[str, Any]:
    """Run the stage and return its results."""
    texts, heldout = folder / "texts.jsonl", folder / "texts_heldout.jsonl"
    texts.write_text(
        "\n".join(json.dumps({"prompt": f"the {i} in a", "response": "an in"}) for i in range(4))
    )
    heldout.write_text(json.dumps({"prompt": "an"}))
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(checkpoint),
            "student": student,
            "prompts": str(texts),
            "heldout": str(heldout),
            "response_tokens": 4,
        }
    )
    return prepare.run(prepare.PrepareInputs(), settings, folder)


def test_prepare_cuts_layers_heads_and_channels(tiny_checkpoint: Path, tmp_path: Path) -> None:
    student = {"kind": "width", "layers": 3, "key_value_heads": 1, "intermediate_size": 96}
    results = prepared(tiny_checkpoint, tmp_path, student)
    model = load_model(tmp_path / "student", dtype=torch.float32)
    config = model.config
    assert (config.num_hidden_layers, config.intermediate_size) == (3, 96)
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 2, 16)
    facts = results["student"]
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert [len(kept) for kept in facts["kept_key_value_heads"]] == [1, 1, 1]
    assert (len(facts["kept_layers"]), facts["intermediate_size"]) == (3, 96)
    assert facts["fallback_rows"] == {"ffn_down": 96, "attn_output": 32, "every other": 64}
    said = [warning.partition(" makes ")[0] for warning in results["warnings"]]
    assert said == ["`prepare.student.key_value_heads` = `1`", "`prepare.student.intermediate_size` = `96`"]
    whole = load_model(tmp_path / "teacher", dtype=torch.float32)
    norms = [layer.input_layernorm.weight for layer in whole.base_model.layers]
    assert torch.equal(norms[facts["kept_layers"][1]], model.base_model.layers[1].input_layernorm.weight)


def test_each_cut_is_chosen_on_what_the_cuts_before_have_left(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    wanted = WidthStudent(layers=3, key_value_heads=1, intermediate_size=64)
    teacher = load_model(tiny_checkpoint, dtype=torch.float32)
    batch = measured_batch(PAIRS)
    channels_of_whole = channel_importance(teacher, batch)
    facts = write_student(tmp_path, PAIRS, teacher, tokenizer, wanted)

    by_hand = load_model(tiny_checkpoint, dtype=torch.float32)
    cut_layers(by_hand, facts["kept_layers"])
    cut_groups(by_hand, [most_important(one, 1) for one in group_importance(by_hand, batch)])
    channels = channel_importance(by_hand, batch)
    cut_channels(by_hand, [most_important(one, 64) for one in channels])
    student = load_model(tmp_path / "student", dtype=torch.float32)
    for name, parameter in by_hand.named_parameters():
        assert torch.equal(student.get_parameter(name), parameter), name
    last = facts["kept_layers"][-1]
    assert not torch.equal(most_important(channels[-1], 64), most_important(channels_of_whole[last], 64))


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"kind": "width", "intermediate_size": 160}, "a student of `160` feed-forward channels"),
        ({"kind": "width", "key_value_heads": 3}, "a student of `3` key-value heads"),
        ({"kind": "width", "key_value_heads": 1, "layers": 5}, "a student of `5` layers"),
        ({"kind": "depth", "layers": 1}, "a student of `1` layers"),
    ],
)
def test_an_impossible_student_is_refused_before_the_teacher_writes(
    tiny_checkpoint: Path, tmp_path: Path, student: dict[str, Any], said: str
) -> None:
    with pytest.raises(DistillError, match=said):
        prepared(tiny_checkpoint, tmp_path, student)
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"intermediate_size": 1000}, "should be a multiple of 32, the nearest are 992 and 1024"),
        ({"intermediate_size": 16}, "greater than or equal to 32"),
        ({"layers": 3}, "needs intermediate_size, key_value_heads or both"),
    ],
)
def test_settings_that_name_no_narrower_student_are_refused(student: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WidthStudent(**student)


def smollm2() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SMOLLM2, **NO_LAYERS))


@pytest.mark.parametrize(
    ("channels", "better"), [(1088, "`1024` or `1280`"), (1472, "`1280` or `1536`"), (192, "`256`")]
)
def test_a_size_that_256_does_not_divide_is_warned_of(channels: int, better: str) -> None:
    (warning,) = size_warnings(smollm2(), WidthStudent(intermediate_size=channels))
    assert warning.startswith(
        f"`prepare.student.intermediate_size` = `{channels}` makes rows of {channels} weights"
    )
    assert warning.endswith(f"in a larger type than Q4_K_M means; {better} would divide by 256")


def test_sizes_that_256_divides_and_the_teachers_own_are_not_warned_of() -> None:
    assert size_warnings(smollm2(), WidthStudent(intermediate_size=1280, key_value_heads=3)) == []
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32}
    teacher = LlamaForCausalLM(LlamaConfig(**(SMOLLM2 | heads | {"intermediate_size": 1056}), **NO_LAYERS))
    assert size_warnings(teacher, WidthStudent(intermediate_size=1056, key_value_heads=3)) == []


def test_an_odd_number_of_blocks_is_warned_of_because_onnx_int4_cannot_be_made_of_it() -> None:
    first, second = size_warnings(smollm2(), WidthStudent(intermediate_size=1056))
    assert "which `onnx-int4` cannot be made of; `1024` or `1088` would divide by 64" in first
    assert "`1024` or `1280` would divide by 256" in second
    sizes = SMOLLM2 | {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    (warning,) = size_warnings(
        LlamaForCausalLM(LlamaConfig(**sizes, **NO_LAYERS)), WidthStudent(key_value_heads=3)
    )
    assert "`prepare.student.key_value_heads` = `3` makes rows of 96 weights in `attn_output`" in warning
    assert warning.endswith("`2` or `4` would divide by 64")
    teacher = LlamaForCausalLM(LlamaConfig(**(SMOLLM2 | {"intermediate_size": 40}), **NO_LAYERS))
    (warning,) = size_warnings(teacher, WidthStudent(intermediate_size=32))
    assert warning.endswith("cannot be made of; leave `onnx-int4` out of `export.schemes`")


def test_heads_are_warned_of_only_where_another_number_of_them_would_fill_blocks() -> None:
    """SmolLM2 has three heads of 64 to a group: neither 192 nor 384 divides by 256. Here it is two."""
    assert size_warnings(smollm2(), WidthStudent(key_value_heads=2)) == []
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, intermediate_size=64, **NO_LAYERS))
    (warning,) = size_warnings(model, WidthStudent(key_value_heads=3))
    assert "`prepare.student.key_value_heads` = `3` makes rows of 384 weights in `attn_output`" in warning
    assert warning.endswith("`2` or `4` would divide by 256")
    assert size_warnings(model, WidthStudent(key_value_heads=2)) == []


def test_heads_of_a_qwen2_are_warned_of_because_llama_cpp_will_not_load_it() -> None:
    sizes = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 64}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **NO_LAYERS))
    (warning,) = size_warnings(model, WidthStudent(key_value_heads=1))
    assert warning.startswith("llama.cpp loads a `qwen2` only where its heads fill the hidden size")
    assert size_warnings(model, WidthStudent(key_value_heads=3)) == []


def test_a_hidden_size_of_the_teachers_own_is_a_fact_and_no_warning(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ammd.distill"):
        prepared(tiny_checkpoint, tmp_path, {"kind": "width", "intermediate_size": 64})
    (record,) = [record for record in caplog.records if "hidden size" in record.message]
    assert record.levelno == logging.INFO
    assert "the hidden size of `64` is the teacher's own and does not divide by 256" in record.message


def test_warnings_reach_the_log_and_the_results(
    tiny_checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        prepare, "size_warnings", lambda _teacher, wanted: [f"{wanted.intermediate_size} is odd"]
    )
    results = prepared(tiny_checkpoint, tmp_path, {"kind": "width", "intermediate_size": 64})
    assert results["warnings"] == ["64 is odd"]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == ["64 is odd"]
