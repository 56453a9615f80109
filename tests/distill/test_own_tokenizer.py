"""A student with a tokenizer of its own, from prepare to the trained one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.artifact import hash_file
from ammd.distill import prepare, stage
from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
from ammd.distill.match import read_match
from ammd.distill.prompts import Example, read_examples
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.snapshots import Snapshots
from ammd.distill.two_tokenizers import TwoTokenizers, speller
from ammd.errors import DistillError, TokenizerMismatchError
from ammd.pipeline.toml_text import write_toml

RESPONSES = (
    "The dog sleeps on the lazy weather, and the fox jumps over the dog.",
    "Größere Äpfel, schöner Öl! Übrigens: weiter.",
    "def f(x):\n    return x + 1",
    "Мягкий чай, мягкие булки. 你好 🙂",
)


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory,
    build_own: Callable[[Any, Path], Path],
) -> dict[str, Path]:
    """Random models with tokenizers of several kinds."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    found = {kind: build_own(kind, folder / kind) for kind in ("smollm", "llama-bpe", "pieces")}
    found["words"] = build_own(_word_tokenizer(PreTrainedTokenizerFast), folder / "words")
    return found


def _word_tokenizer(kind: Any) -> Any:
    """Return a tokenizer whose tokens have no bytes that we know."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = [
        "[UNK]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz.,",
        *(f"##{one}" for one in "abcdefghijklmnopqrstuvwxyz"),
    ]
    backend = Tokenizer(models.WordPiece({one: at for at, one in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken("[SEP]", special=True), AddedToken("[UNK]", special=True)])
    tokenizer = kind(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]", bos_token="[SEP]", pad_token="[SEP]"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}[SEP]"
    return tokenizer


def prepared(teacher: Path, own: Path, folder: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{at}?", "response": RESPONSES[at % len(RESPONSES)]} for at in range(12)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "heldout.jsonl").write_text(json.dumps({"prompt": "What?"}))
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(teacher),
            "student": {"kind": "model", "source": str(own), "tokenizer": "own"},
            "prompts": str(folder / "train.jsonl"),
            "heldout": str(folder / "heldout.jsonl"),
            "response_tokens": 40,
            **changes,
        }
    )
    out = folder / "prepare"
    out.mkdir()
    return out, prepare.run(prepare.PrepareInputs(), settings, out)


def trained(source: Path, folder: Path, objective: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    settings = DistillSettings.model_validate(
        {
            "batch_size": 4,
            "precision": "float32",
            "warm": {"steps": 2},
            "objective": {"steps": 2, **objective},
            **changes,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    stage.run(stage.DistillInputs(prepared=source), settings, folder)
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def tokenizers_of(checkpoints: dict[str, Path], teacher: str, student: str) -> TwoTokenizers:
    sides = [load_tokenizer(checkpoints[name]) for name in (teacher, student)]
    return TwoTokenizers(*(speller(one, [one.eos_token_id]) for one in sides))


@pytest.fixture(scope="module")
def alike(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    return prepared(checkpoints["smollm"], checkpoints["llama-bpe"], tmp_path_factory.mktemp("alike"))


@pytest.mark.parametrize("student", ["llama-bpe", "pieces", "words"])
def test_texts_are_in_the_students_tokens_beside_the_teachers(
    checkpoints: dict[str, Path], tmp_path: Path, student: str
) -> None:
    folder, _ = prepared(checkpoints["smollm"], checkpoints[student], tmp_path)
    own, teachers = (load_tokenizer(checkpoints[name]) for name in (student, "smollm"))
    for example, (at, given) in zip(
        read_examples(folder / "train.jsonl"), enumerate(RESPONSES * 3), strict=True
    ):
        assert example.teacher_response_ids is not None
        text = teachers.decode(example.teacher_response_ids, skip_special_tokens=True)
        assert given.startswith(text.rstrip("\ufffd"))
        whole = example.teacher_response_ids[-1] == teachers.eos_token_id
        assert (example.response_ids[-1] == own.eos_token_id) == whole
        spoken = own.encode(text.rstrip("\ufffd"), add_special_tokens=False)
        assert list(example.response_ids) == spoken + [own.eos_token_id] * whole
        chat = [{"role": "user", "content": f"{at}?"}]
        rendered = own.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert list(example.prompt_ids) == own.encode(rendered, add_special_tokens=False)
    heldout = json.loads((folder / "heldout.jsonl").read_text())
    assert heldout["prompt_ids"] != heldout["teacher_prompt_ids"]


def test_what_is_matched_is_counted(checkpoints: dict[str, Path], alike: tuple[Path, dict[str, Any]]) -> None:
    folder, results = alike
    match = read_match(folder)
    assert match is not None
    assert results["match"]["misfit"] == "" == match.misfit
    own, teachers = (load_tokenizer(checkpoints[name]) for name in ("llama-bpe", "smollm"))
    names = (set(one.get_vocab()) - set(one.all_special_tokens) for one in (own, teachers))
    assert match.shared_tokens >= len(set.intersection(*names))
    # Both write bytes in the same letters, so that beginnings can be compared as they are written.
    aligned = total = 0
    for example in read_examples(folder / "train.jsonl"):
        ours, theirs = (
            ["".join(one.convert_ids_to_tokens(ids[:at])) for at in range(len(ids))]
            for one, ids in ((own, example.response_ids), (teachers, example.teacher_response_ids or ()))
        )
        aligned += len(set(ours) & set(theirs))
        total += len(ours)
    assert match.aligned_share == pytest.approx(aligned / total)
    assert match.shared_mass + match.beginning_mass + match.remainder_mass == pytest.approx(1)
    assert match.shared_mass > 0.8  # both learnt from the same sentences, and the teacher is random


def test_a_text_keeps_its_place_through_both_tokenizers(checkpoints: dict[str, Path]) -> None:
    for student in ("llama-bpe", "pieces"):
        both = tokenizers_of(checkpoints, "smollm", student)
        own, teachers = (load_tokenizer(checkpoints[name]) for name in (student, "smollm"))
        for text in RESPONSES:
            theirs = (*teachers.encode(text, add_special_tokens=False), teachers.eos_token_id)
            ours = both.for_student(theirs)
            assert both.for_teacher(ours) == theirs
            common = both.common_states(ours, theirs)
            assert common[-1] == (len(ours) - 1, len(theirs) - 1)  # the end is about the same text
            for place, other in common[:-1]:
                said = own.decode(ours[:place]).rstrip("\ufffd")
                assert said == teachers.decode(theirs[:other]).rstrip("\ufffd")


OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "forward_kl": {"kind": "forward_kl", "student_share": 0.5},
    "reverse_kl": {"kind": "reverse_kl"},
    "gjsd": {"kind": "gjsd"},
    "skew_kl": {"kind": "skew_kl"},
    "ammd": {"kind": "ammd", "discount": 0.5},
    "sampled": {"kind": "ammd", "estimator": "sampled"},
    "critic": {"kind": "ammd", "critic": {"kind": "lowrank", "start": "log_ratio", "ascent_tokens": 9}},
    "distillm": {
        "kind": "distillm",
        "check_steps": 1,
        "validation_texts": 3,
        "tolerance": 0,
        "share_step": 1,
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_train(alike: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    rows = trained(alike[0], tmp_path / name, OBJECTIVES[name])
    assert len(rows) == 4
    for row in rows:
        shares = [value for key, value in row.items() if key.startswith("compared_")]
        assert shares and all(0 < share <= 1 for share in shares)
    tokenizer = load_tokenizer(tmp_path / name / "student")
    assert tokenizer.get_vocab() == load_tokenizer(alike[0] / "student").get_vocab()


@pytest.mark.parametrize("kind", ["forward_kl", "ammd"])
def test_training_closes_the_gap(alike: tuple[Path, dict[str, Any]], tmp_path: Path, kind: str) -> None:
    """What the two have in common comes nearer, and the student learns to spell the rest."""
    rows = trained(
        alike[0],
        tmp_path,
        {"kind": kind, "steps": 40, "lr": 3e-3, "student_share": 0.0},
        warm={"steps": 1, "lr": 1e-5},
    )
    assert rows[-1]["d_off"] < 0.5 * rows[1]["d_off"]
    assert rows[-1]["loss"] < 0.5 * rows[1]["loss"]


def test_a_student_that_says_the_same_under_other_numbers_stays_there(
    tiny_checkpoint: Path, renumbered_checkpoint: Path, tmp_path: Path
) -> None:
    """Every state is aligned and every token shared: nothing is left between the two, on anybody's texts."""
    source, results = prepared(tiny_checkpoint, renumbered_checkpoint, tmp_path)
    found = results["match"]
    assert (
        found["teacher_tokens"] == found["student_tokens"] == found["shared_tokens"] + 2
    )  # they begin texts and turns
    assert found["aligned_share"] == found["teacher_aligned_share"] == 1
    assert found["remainder_mass"] < 0.025  # of those two and three rows without a token, of 268
    rows = trained(
        source, tmp_path / "out", {"kind": "ammd", "lr": 1e-6, "discount": 0.5}, warm={"steps": 1, "lr": 1e-6}
    )
    for row in rows:
        assert row["kl_nats"] < 1e-4
        assert row["tv_off"] < 5e-3
    assert all(row["tv_on"] < 5e-3 for row in rows[1:])


def test_texts_alone_teach_a_student_that_shares_nothing(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source, results = prepared(checkpoints["smollm"], checkpoints["words"], tmp_path)
    assert "is the least" in results["match"]["misfit"]
    assert "only objective `sft` fits" in results["warnings"][0]
    rows = trained(
        source, tmp_path / "sft", {"kind": "sft", "steps": 30, "lr": 3e-3}, warm={"steps": 1, "lr": 1e-5}
    )
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all("kl_nats" not in row and row["compared_off"] == 0 for row in rows)
    with pytest.raises(DistillError, match="too little in common for objective `forward_kl`") as refusal:
        trained(source, tmp_path / "kl", {"kind": "forward_kl"})
    assert 'distill.objective = "sft"' in refusal.value.hint


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "minillm"}, "objective `minillm` draws each token from both models"),
        ({"kind": "ammd", "critic": {"kind": "linear"}}, "critic that starts from the difference of logits"),
    ],
)
def test_what_needs_one_tokenizer_is_refused_before_any_work(
    alike: tuple[Path, dict[str, Any]], tmp_path: Path, objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        trained(alike[0], tmp_path, objective)
    assert not (tmp_path / "curves.jsonl").exists()


def test_another_tokenizer_is_refused_unless_it_is_asked_for(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    student = {"kind": "model", "source": str(checkpoints["llama-bpe"])}
    with pytest.raises(TokenizerMismatchError) as refusal:
        prepared(checkpoints["smollm"], checkpoints["llama-bpe"], tmp_path, student=student)
    assert 'prepare.student.tokenizer = "own"' in refusal.value.hint
    assert not (tmp_path / "prepare" / "train.jsonl").exists()


def test_a_student_of_the_same_tokenizer_keeps_the_plain_path(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder, results = prepared(checkpoints["smollm"], checkpoints["smollm"], tmp_path)
    assert "match" not in results
    assert read_match(folder) is None
    assert all(example.teacher_prompt_ids is None for example in read_examples(folder / "train.jsonl"))


def test_heads_that_are_padded_differently_are_refused_or_matched_by_text(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    save_checkpoint(model, load_tokenizer(tiny_checkpoint), tmp_path / "padded")
    plain = {"kind": "model", "source": str(tmp_path / "padded")}
    with pytest.raises(TokenizerMismatchError, match="has `276` rows and the teacher's `268`"):
        prepared(tiny_checkpoint, tmp_path / "padded", tmp_path / "refused", student=plain)
    source, results = prepared(tiny_checkpoint, tmp_path / "padded", tmp_path / "own")
    assert results["match"]["aligned_share"] == 1
    rows = trained(source, tmp_path / "out", {"kind": "ammd", "lr": 1e-6}, warm={"steps": 1, "lr": 1e-6})
    assert all(row["compared_off"] == 1 for row in rows)


def test_a_student_without_a_chat_template_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoints["llama-bpe"])
    tokenizer.chat_template = None
    save_checkpoint(load_model(checkpoints["llama-bpe"], dtype=torch.float32), tokenizer, tmp_path / "bare")
    with pytest.raises(DistillError, match="its own tokenizer, which has no chat template"):
        prepared(checkpoints["smollm"], tmp_path / "bare", tmp_path / "out")


def test_trimming_goes_with_one_tokenizer(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"excludes student\.tokenizer"):
        prepared(checkpoints["smollm"], checkpoints["llama-bpe"], tmp_path, vocabulary={})


def test_a_stopped_training_goes_on_to_the_same_bytes(
    alike: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[pytest.MonkeyPatch, str, int], None],
) -> None:
    settings = DistillSettings.model_validate(
        {
            "batch_size": 4,
            "precision": "float32",
            "warm": {"steps": 1},
            "objective": {**OBJECTIVES["critic"], "steps": 4, "rollout_reuse_steps": 2, "discount": 0.5},
        }
    )
    for name in ("whole", "cut off", "parts"):
        (tmp_path / name).mkdir()
    stage.run(stage.DistillInputs(prepared=alike[0]), settings, tmp_path / "whole")
    monkeypatch.setattr(Snapshots, "is_due", True)
    inputs = stage.DistillInputs(prepared=alike[0], resume=tmp_path / "resume")
    with monkeypatch.context() as patch:
        stop_at(patch, "ammd", 3)
        with pytest.raises(KeyboardInterrupt):
            stage.run(inputs, settings, tmp_path / "cut off")
    stage.run(inputs, settings, tmp_path / "parts")
    weights = "student/model.safetensors"
    assert hash_file(tmp_path / "parts" / weights) == hash_file(tmp_path / "whole" / weights)


def test_several_processes_train_what_one_does(
    alike: tuple[Path, dict[str, Any]], tmp_path: Path, check_same: Callable[..., None]
) -> None:
    # Each process draws states of its own to ascend at: all of them.
    critic = {"kind": "lowrank", "start": "log_ratio", "ascent_tokens": 10_000}
    objective = {"kind": "ammd", "steps": 3, "lr": 1e-3, "critic": critic}
    settings = {
        "batch_size": 8,
        "precision": "float32",
        "warm": {"steps": 2, "lr": 1e-3},
        "objective": objective,
    }
    (tmp_path / "settings.toml").write_text(write_toml(settings))
    (tmp_path / "one").mkdir()
    stage.run(
        stage.DistillInputs(prepared=alike[0]), DistillSettings.model_validate(settings), tmp_path / "one"
    )
    command = [
        *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "ammd.distill", str(alike[0]), str(tmp_path / "two")),
        *("--settings", str(tmp_path / "settings.toml")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_same(alike[0], tmp_path / "one", tmp_path / "two", steps=5, moved_share=None)


@pytest.mark.parametrize("student", ["t5", "smollm"])
def test_an_encoder_decoder_teaches_a_decoder_and_learns_from_one(
    checkpoints: dict[str, Path], tiny_t5: Path, tmp_path: Path, student: str
) -> None:
    models = {"t5": tiny_t5, "smollm": checkpoints["smollm"]}
    teacher = models["smollm" if student == "t5" else "t5"]
    (tmp_path / "texts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"{at}?", "response": "the sum in an up then"}) + "\n" for at in range(8)
        )
    )
    source, results = prepared(teacher, models[student], tmp_path, prompts=str(tmp_path / "texts.jsonl"))
    match = results["match"]
    assert match["aligned_share"] > 0.3
    # A random teacher of many tokens has little of its probability on the few of the T5.
    assert bool(match["misfit"]) == (student == "t5")
    rows = trained(source, tmp_path / "out", {"kind": "sft" if match["misfit"] else "gjsd"})
    assert all((row["compared_off"] > 0) != bool(match["misfit"]) for row in rows)


def test_examples_of_two_tokenizers_come_back_as_they_were(tmp_path: Path) -> None:
    from ammd.distill.prompts import write_examples

    example = Example(
        prompt="a",
        response="b",
        prompt_ids=(1,),
        response_ids=(2, 3),
        teacher_prompt_ids=(4,),
        teacher_response_ids=(5,),
    )
    write_examples(tmp_path / "x.jsonl", [example])
    assert read_examples(tmp_path / "x.jsonl") == [example]
    assert (example.pair, example.teacher_pair) == (((1,), (2, 3)), ((4,), (5,)))
