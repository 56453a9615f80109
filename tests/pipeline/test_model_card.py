"""The model card: front matter that the hub reads, numbers from the run, nothing of this machine, nothing invented."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from ammd.encoder_decoder import load_language_model
from ammd.export.optimum_exporter import missing_exporter
from ammd.export.to_gguf import write_gguf
from ammd.export.to_standard_onnx import write_standard_onnx
from ammd.pipeline.license_note import license_lines
from ammd.pipeline.model_card import QUESTION, read_student_config, render_card
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe
from ammd.pipeline.summary import build_summary

BASE = {
    "name": "Base",
    "source": "hub:Org/Base@main",
    "revision": "commit:123",
    "hub_id": "Org/Base",
    "license": {"id": "apache-2.0", "name": None, "link": None},
}
OWN = {
    **BASE,
    "name": "Own",
    "hub_id": None,
    "license": {"id": "other", "name": "my-own", "link": "https://a.b/c"},
}
TRAINING = {
    "parameters": 113_000_000,
    "kept_layers": [0, 2],
    "block_influence": [0.1, 0.2, 0.3],
    "train_prompts": 1072,
    "train_response_tokens": 60760,
    "teacher_written": 1072,
}


def _artifact(name, kind, path, size):
    return {
        "name": name,
        "format": kind,
        "path": f"/home/me/runs/tiny/x/export/{path}",
        "bytes": size,
        "bits_per_weight": 4.5,
        "parity": {"kl_nats": 0.0391, "top1_agreement": 0.884, "faults": []},
        "quality": {"kl_to_teacher_nats": 0.579, "rouge_l": 0.25, "repetition": 0.199, "prompts": 8},
        "bench": {
            "threads": 2,
            "decode_tokens_per_s": 128.4,
            "ttft_s": 0.169,
            "peak_rss_bytes": 158 << 20,
            "validity": "noisy",
        },
    }


@pytest.fixture
def summary(tmp_path, recipe_path):
    """A summary as a finished run has it, its numbers made up."""
    found = build_summary(load_recipe(recipe_path), tmp_path, {})
    found["measured_on"] = {"cpu": "Some CPU", "cores": 2, "ram_bytes": 24 << 30}
    found["versions"] = {"ammd": "0.1.0"}
    found["origin"] = {"recipe_sha256": "ab", "student_sha256": "cd", "teacher": BASE, "base_model": BASE}
    found["training"] = TRAINING
    found["artifacts"] = [
        _artifact("gguf-f16", "gguf", "student-f16.gguf", 200 << 20),
        _artifact("gguf-q4_k_m", "gguf", "student-q4_k_m.gguf", 87 << 20),
        _artifact("onnx-int4", "onnx-genai", "onnx-int4", 97 << 20),
    ]
    return found


def _card(summary, **config):
    return render_card(summary, student_config={"max_position_embeddings": 512, **config})


def test_models_are_explained_that_are_in_the_table(summary):
    assert "student-pruned" not in _card(summary)
    summary["models"] = [{"name": "student-pruned", "quality": {"prompts": 8}}]
    card = _card(summary)
    assert "said before. `student-pruned` is the student before training.\n\n| model |" in card
    assert "student-warm" not in card


def _blocks(card):
    """Return the card's code by language."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    return {kind: [text for name, text in blocks if name == kind] for kind, _ in blocks}


def test_front_matter_is_what_the_hub_reads(summary):
    data = ModelCard(_card(summary)).data
    assert (data.license, data.base_model, data.pipeline_tag) == ("apache-2.0", "Org/Base", "text-generation")
    assert data.tags == ["gguf", "onnx", "llama.cpp", "onnxruntime-genai", "distillation", "ammd"]
    summary["origin"]["base_model"] = OWN
    data = ModelCard(_card(summary)).data
    assert (data.license, data.license_name, data.license_link) == ("other", "my-own", "https://a.b/c")
    assert data.base_model is None


def test_a_run_of_standard_onnx_files_alone_has_a_card(summary):
    summary["artifacts"] = [_artifact("onnx-standard-int8", "onnx", "onnx-standard-int8", 200 << 20)]
    data = ModelCard(_card(summary)).data
    assert data.library_name == "onnxruntime"
    assert data.tags == ["onnx", "onnxruntime", "distillation", "ammd"]


def test_numbers_are_the_runs(summary):
    card = _card(summary)
    file = "export/student-q4_k_m.gguf"
    assert f"| [`{file}`]({file}) | 87 | 4.50 | 0.039 | 88.4 % | passed |" in card
    assert "Speed and memory on 2 cores of Some CPU, 24 GiB of memory:" in card
    assert "| `gguf-q4_k_m` | 2 | 128 | 169 | 158 | noisy |" in card
    assert "first token after 128 tokens" in card
    assert "| `gguf-q4_k_m` | 8 | 0.579 | 25.0 | 19.9 |" in card
    assert "113 million parameters in 2 layers" in card
    assert "cut to 2 of its 3 layers" in card
    assert "1,072 prompts (`prompts.jsonl`), 60,760 response tokens, all written by the teacher" in card
    assert "- Teacher: [Base](https://huggingface.co/Org/Base), from `hub:Org/Base@main`, commit:123." in card
    assert "seeds 7 (texts) and 7 (training)" in card
    summary["artifacts"][1]["parity"]["faults"] = ["x"]
    assert "| 88.4 % | 1 failed |" in _card(summary)
    summary["artifacts"][1]["bench"] = {"threads": 2, "failure": {"ended": "x"}, "validity": "invalid"}
    assert "| `gguf-q4_k_m` | 2 | – | – | – | failed |" in _card(summary)


def test_a_student_by_width_is_told_as_one(summary):
    summary["training"] |= {"kept_key_value_heads": [[0, 2], [1, 2]], "intermediate_size": 1024}
    assert "in 2 layers with 2 key-value heads and 1,024 feed-forward channels a layer" in _card(summary)


def test_prompts_that_were_too_long_are_counted(summary):
    summary["training"] = {**TRAINING, "train_left_out": 1234}
    assert "all written by the teacher; 1,234 longer prompts were left out.\n" in _card(summary)
    assert "left out" not in _card(summary | {"training": {**TRAINING, "train_left_out": 0}})


def test_a_tuned_teacher_is_told_as_one(summary):
    assert "fine-tuned" not in _card(summary)
    summary["tuning"] = {"steps": 300, "heldout_nats_before": 3.36, "heldout_nats": 1.8125}
    summary["recipe"]["prepare"]["tuning"] = {"steps": 300, "lr": 5e-4, "batch_size": 32}
    told = "fine-tuned on the given responses first, 300 steps at 0.0005 in batches of 32"
    assert (
        f"{told}, which took the cross-entropy of held-out ones from 3.360 to 1.812 nats a token."
        in _card(summary)
    )
    summary["tuning"]["heldout_nats"] = None
    assert f"{told}.\n" in _card(summary)


def test_both_stacks_of_an_encoder_decoder_are_told(summary):
    summary["training"] = {**TRAINING, "kept_encoder_layers": [0], "encoder_block_influence": [0.1, 0.2]}
    card = _card(summary)
    assert "113 million parameters in 1 encoder and 2 decoder layers" in card
    assert "cut to 1 of its 2 encoder and 2 of its 3 decoder layers" in card


def test_tokenizers_that_differ_are_told_as_in_the_report(summary):
    assert "Tokenizers" not in _card(summary)
    summary["training"] = {**TRAINING, "objective": "ammd"}
    summary["match"] = {
        "teacher_tokens": 49152,
        "student_tokens": 32000,
        "shared_tokens": 21000,
        "aligned_share": 0.81,
        "shared_mass": 0.925,
        "beginning_mass": 0.07,
        "remainder_mass": 0.005,
        "misfit": "",
    }
    (line,) = re.findall("^- Tokenizers: (.*)$", _card(summary), flags=re.MULTILINE)
    assert line == (
        "Teacher and student have tokenizers of their own: 49,152 and 32,000 tokens, of which they share 21,000. "
        "In training both distributions were matched on the shared tokens and a remainder, wherever both had said the "
        "same text. Of the student's response tokens 81 % begin there; tokens that both have hold 92.5 % of the "
        "teacher's probability at these places, others that count for the shared token they begin with 7.0 %, the "
        "remainder 0.5 %."
    )


def test_nothing_of_this_machine_is_told(summary, tmp_path):
    card = _card(summary)
    assert str(tmp_path) not in card
    assert "/home/" not in card


def test_examples_take_the_smallest_file_of_each_kind(summary):
    blocks = _blocks(_card(summary))
    assert "-m export/student-q4_k_m.gguf" in blocks["sh"][0]
    llama, genai = blocks["python"]
    assert 'Llama("export/student-q4_k_m.gguf", n_ctx=512' in llama
    assert 'og.Model("export/onnx-int4")' in genai
    assert "max_length=512" in genai
    summary["artifacts"] = summary["artifacts"][:1]
    blocks = _blocks(_card(summary))
    assert blocks.keys() == {"sh", "python"}
    assert "student-f16.gguf" in blocks["python"][0]


def _greedy_text(checkpoint):
    """Return transformers' own answer to the card's question."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    source = tokenizer(QUESTION, return_tensors="pt").input_ids
    assert int(source[0, -1]) == tokenizer.eos_token_id
    model = load_language_model(checkpoint, dtype=torch.float32)
    said = model.generate(source, max_new_tokens=128, do_sample=False)
    return tokenizer.decode(said[0], skip_special_tokens=True).strip()


def _run_example(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_encoder_decoder_is_told_as_one(summary):
    summary["artifacts"] = summary["artifacts"][:2]  # onnxruntime-genai runs none
    card = _card(summary, is_encoder_decoder=True)
    assert ModelCard(card).data.pipeline_tag == "text2text-generation"
    assert "token ids, start token, end tokens and greedy text" in card
    assert _blocks(card).keys() == {"sh", "python"}
    assert 'llama-completion -m export/student-q4_k_m.gguf -n 128 -p "' in card
    assert "apply_chat_template" not in card
    assert "create_chat_completion" not in card


def test_the_example_of_an_encoder_decoders_gguf_writes_transformers_greedy_text(
    summary, unigram_t5, tmp_path
):
    (tmp_path / "export").mkdir()
    write_gguf(unigram_t5, tmp_path / "export/student-f32.gguf", name="tiny", type_name="f32")
    summary["artifacts"] = [_artifact("gguf-f32", "gguf", "student-f32.gguf", 1 << 20)]
    card = render_card(summary, student_config=read_student_config(unigram_t5))
    (code,) = _blocks(card)["python"]
    expected = _greedy_text(unigram_t5)
    assert len(expected) > 20
    assert _run_example(code, tmp_path) == expected


@pytest.mark.skipif(missing_exporter() is not None, reason="optimum-onnx is not installed here")
def test_the_example_of_an_encoder_decoders_graphs_writes_transformers_greedy_text(
    summary, unigram_t5, tmp_path
):
    (tmp_path / "export").mkdir()
    write_standard_onnx(unigram_t5, tmp_path / "export/onnx-standard-fp32")
    summary["artifacts"] = [_artifact("onnx-standard-fp32", "onnx", "onnx-standard-fp32", 1 << 20)]
    card = render_card(summary, student_config=read_student_config(unigram_t5))
    (code,) = _blocks(card)["python"]
    assert _run_example(code, tmp_path) == _greedy_text(unigram_t5)


def test_swift_example_calls_what_the_library_exports_and_frees_what_it_makes(summary):
    blocks = _blocks(_card(summary))
    library = Path(find_spec("onnxruntime_genai").origin).parent / "libonnxruntime-genai.so"
    content = library.read_bytes()
    called = set(re.findall(r"\bOga\w+", blocks["swift"][0]))
    assert len(called) > 15
    assert {name for name in called if name.encode() + b"\0" not in content} == set()
    created = {name.removeprefix("OgaCreate") for name in called if name.startswith("OgaCreate")}
    assert created <= {name.removeprefix("OgaDestroy") for name in called if name.startswith("OgaDestroy")}


def test_what_is_not_known_is_said_to_be_unknown(summary):
    summary["origin"], summary["training"], summary["measured_on"] = None, {}, None
    summary["artifacts"][0] |= {"parity": None, "quality": None, "bench": None}
    card = _card(summary)
    assert ModelCard(card).data.license is None
    assert "Licence of the base model: unknown" in card
    assert "distilled from `teacher`" in card
    assert "on a machine of which the run has no record" in card
    assert "| `gguf-f16` | – | – | – | – |" in card


def test_licence_says_what_each_part_states():
    known, data, _ = license_lines(base=BASE, teacher=BASE, prompts="builtin:quickstart")
    assert "Base, states its licence as `apache-2.0`." in known
    assert "give a copy of that licence" in known
    assert "Apache-2.0" in data
    base, teacher, data, _ = license_lines(base=OWN, teacher={**BASE, "license": None}, prompts="/x.jsonl")
    assert "`my-own`, https://a.b/c" in base
    assert "read it" in base
    assert "teacher, Base: unknown" in teacher
    assert "training data: unknown" in data


def test_a_run_writes_its_card_and_writes_it_again(tmp_path, recipe_path, stand_in):
    recipe = load_recipe(recipe_path)
    made = run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    path = tmp_path / "runs" / made["run"] / "MODEL_CARD.md"
    text = path.read_text(encoding="utf-8")
    assert "2 tensors of rows of 576 weights stored as Q5_0 instead of Q4_K" in text
    path.unlink()
    run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    assert path.read_text(encoding="utf-8") == text
