"""lm-evaluation-harness over our engines, beside its own Hugging Face backend: one checkpoint, the same requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ammd.encoder_decoder import load_language_model
from ammd.errors import EngineError, RecipeError
from ammd.runtime.artifact_ref import EngineKind
from ammd.runtime.engine import open_engine

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: `pip install 'ammd[lm-eval]'`")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ammd.runtime.lm_eval_model import EngineLM, read_generation

MAX_LENGTH = 64
# Of one token's log-probability, in nats: float32 everywhere but llama.cpp's F16 KV cache. Another context changes that
# of this model by 0.01 and more.
TOLERANCE = {
    EngineKind.TORCH: 2e-5,
    EngineKind.LLAMA_CPP: 1e-3,
    EngineKind.ONNX_GENAI: 2e-5,
    EngineKind.ONNX_RUNTIME: 2e-5,
}
FORMS = [
    (EngineKind.TORCH, "tiny_checkpoint"),
    (EngineKind.LLAMA_CPP, "tiny_gguf"),
    (EngineKind.ONNX_GENAI, "tiny_onnx"),
    (EngineKind.ONNX_RUNTIME, "tiny_standard_onnx"),
]
PAIRS = (
    ("the cat", " and the thing"),
    ("blanks at the end  ", "in the"),
    (" ", "the"),
    ("", "the an"),
    ("", "<|im_start|>the an"),
    ("Ünï 中文 ", "😀 the"),
    ("<|im_start|>user", "\nthe"),
    ("too long for the context " * 6, " the end of it"),
    ("one context", "s"),
    ("one context", "!"),
    ("one context", " of more"),
)
TEXTS = ("the thing in the an", "longer than one window of tokens: " * 8, "")
QUESTIONS = ("the thing", "and 12 more", "a long question about an answer " * 5)


@pytest.fixture(scope="module", params=FORMS, ids=[f"{kind.value}-{name}" for kind, name in FORMS])
def form(request: pytest.FixtureRequest) -> tuple[EngineKind, Path]:
    kind, name = request.param
    return kind, request.getfixturevalue(name)


@pytest.fixture(scope="module")
def kind(form: tuple[EngineKind, Path]) -> EngineKind:
    return form[0]


@pytest.fixture(scope="module")
def ours(form: tuple[EngineKind, Path]) -> Iterator[EngineLM]:
    kind, path = form
    model = EngineLM(path, engine=kind.value, threads=1, max_length=MAX_LENGTH)
    yield model
    model.close()


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path) -> HFLM:
    return HFLM(pretrained=str(tiny_checkpoint), device="cpu", dtype="float32", max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    return TaskManager(
        include_path=str(write_tasks(tmp_path_factory.mktemp("tasks"))), include_defaults=False
    )


def write_tasks(folder: Path) -> Path:
    """Write three tasks over one JSONL: choices, generated answers, perplexity."""
    rows = [
        {
            "question": f"{text} {number}",
            "choices": ["the", "an", " in the"],
            "answer": number % 3,
            "text": text * 2,
        }
        for number, text in enumerate(QUESTIONS * 2)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    kinds: dict[str, dict[str, Any]] = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "local_answers": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{text}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "chrf"}],
        },
        "local_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }
    for name, task in kinds.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **task}))  # JSON is YAML
    return folder


def asks(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index) for index, one in enumerate(arguments)
    ]


def evaluate(model: Any, tasks: TaskManager, names: Sequence[str], **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=list(names), task_manager=tasks, bootstrap_iters=0, **options
    )
    return found


def test_log_likelihoods_are_those_of_the_hugging_face_backend(
    ours: EngineLM, theirs: HFLM, kind: EngineKind
) -> None:
    pairs = [pair for pair in PAIRS if pair[0] != " "]  # which it cannot score
    found = ours.loglikelihood(asks("loglikelihood", pairs))
    expected = theirs.loglikelihood(asks("loglikelihood", pairs), disable_tqdm=True)
    for (_, continuation), (ours_nats, ours_greedy), (nats, greedy) in zip(
        pairs, found, expected, strict=True
    ):
        assert ours_nats == pytest.approx(nats, abs=TOLERANCE[kind] * len(continuation))
        assert ours_greedy == greedy
    # None are alike by chance; a text that begins with the BOS token is one after an empty context.
    assert len({round(nats, 2) for nats, _ in found}) == len(pairs) - 1


def test_whole_texts_are_read_in_the_same_windows(ours: EngineLM, theirs: HFLM, kind: EngineKind) -> None:
    requests = asks("loglikelihood_rolling", [(text,) for text in TEXTS])
    found = ours.loglikelihood_rolling(requests)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    for text, our_nats, nats in zip(TEXTS, found, expected, strict=True):
        assert our_nats == pytest.approx(nats, abs=TOLERANCE[kind] * len(text))
    assert found[-1] == 0


def test_greedy_answers_are_those_of_the_hugging_face_backend(ours: EngineLM, theirs: HFLM) -> None:
    settings = [{"until": ["Q", "<|im_end|>"], "max_gen_toks": 20}, {"max_gen_toks": 9}, {"until": "\n"}]
    asked = [(question, {"max_gen_toks": 30} | one) for question in QUESTIONS for one in settings]
    found = ours.generate_until(asks("generate_until", asked))
    assert found == theirs.generate_until(asks("generate_until", asked), disable_tqdm=True)
    assert any(found)


def test_its_own_greedy_answer_is_greedy(ours: EngineLM, theirs: HFLM) -> None:
    prompt = "the thing"
    with open_engine(ours._path, threads=1, context_tokens=MAX_LENGTH) as engine:
        best = engine.tokenize(prompt)
        for _ in range(6):
            best.append(int(engine.prefill(best).argmax()))
    split = len(best) - 6
    requests = [(None, best[:split], best[split:]), (None, best[:split], [*best[split:-1], 5])]
    assert [greedy for _, greedy in ours._loglikelihood_tokens(requests)] == [True, False]
    assert [greedy for _, greedy in theirs._loglikelihood_tokens(requests, disable_tqdm=True)] == [
        True,
        False,
    ]


def test_tasks_score_alike(ours: EngineLM, theirs: HFLM, kind: EngineKind, tasks: TaskManager) -> None:
    names = ("local_choice", "local_answers", "local_text")
    found = evaluate(ours, tasks, names)["results"]
    expected = evaluate(theirs, tasks, names)["results"]
    for name, metric in (("local_choice", "acc"), ("local_choice", "acc_norm"), ("local_answers", "chrf")):
        assert found[name][f"{metric},none"] == expected[name][f"{metric},none"]
    for metric in ("word_perplexity", "bits_per_byte"):
        ratio = found["local_text"][f"{metric},none"] / expected["local_text"][f"{metric},none"]
        assert ratio == pytest.approx(1, abs=40 * TOLERANCE[kind])


def test_chats_are_rendered_alike(ours: EngineLM, theirs: HFLM) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": " Because of the "},
    ]
    for opened in (True, False):  # a task's `gen_prefix` ends the prompt in the middle of the answer
        expected = theirs.apply_chat_template(chat, add_generation_prompt=opened)
        assert ours.apply_chat_template(chat, add_generation_prompt=opened) == expected


def test_chats_score_alike(ours: EngineLM, theirs: HFLM, tasks: TaskManager) -> None:
    def samples(model: Any) -> list[Any]:
        found = evaluate(model, tasks, ["local_answers"], apply_chat_template=True, fewshot_as_multiturn=True)
        return [(one["arguments"], one["resps"]) for one in found["samples"]["local_answers"]]

    assert samples(ours) == samples(theirs)


def test_drawn_answers_come_from_the_seed(ours: EngineLM) -> None:
    asked = asks("generate_until", [("the", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8})] * 3)

    def drawn(seed: int) -> list[str]:
        np.random.seed(seed)
        return ours.generate_until(asked)

    first = drawn(1)
    assert len(set(first)) == 3  # a task's repeats of one request
    assert drawn(1) == first
    assert drawn(2) != first


def test_a_longer_request_opens_a_longer_context(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ammd.runtime.lm_eval_model._FIRST_CONTEXT_TOKENS", 16)
    model = EngineLM(tiny_gguf, threads=1)
    assert model.max_length == 512  # as the file says
    short, long = ("the", " an"), ("the " * 60, " an")
    (before, _), (_, _) = (*model.loglikelihood(asks("loglikelihood", [short])), (0, 0))
    assert model.get_model_info()["model_engine_settings"]["context_tokens"] == 16
    after = model.loglikelihood(asks("loglikelihood", [long, short]))
    assert 60 < model.get_model_info()["model_engine_settings"]["context_tokens"] < 512
    assert after[1][0] == pytest.approx(before, abs=1e-3)
    model.close()


def test_what_is_cached_is_not_asked_again(
    tiny_gguf: Path, tasks: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "answers")
    asked: list[int] = []
    scored = EngineLM._loglikelihood_tokens

    def counted(self: EngineLM, requests: Sequence[Any], **options: Any) -> list[Any]:
        asked.append(len(requests))
        return scored(self, requests, **options)

    monkeypatch.setattr(EngineLM, "_loglikelihood_tokens", counted)
    model = EngineLM(tiny_gguf, threads=1)
    evaluate(model, tasks, ["local_choice"], use_cache=cache, limit=2)
    found = evaluate(model, tasks, ["local_choice"], use_cache=cache)
    assert asked == [6, 12]  # three choices of two rows, then of the four others
    assert evaluate(model, tasks, ["local_choice"], use_cache=cache)["results"] == found["results"]
    assert len(asked) == 2
    model.close()


def test_an_interrupted_task_keeps_what_was_scored(
    tiny_gguf: Path, tasks: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ammd.runtime import lm_eval_model

    score, left = lm_eval_model.score_continuations, [2]

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return score(*arguments)

    model = EngineLM(tiny_gguf, threads=1)
    cache = str(tmp_path / "answers")
    monkeypatch.setattr(lm_eval_model, "score_continuations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tasks, ["local_choice"], use_cache=cache)
    left[0] = 4  # of six contexts
    evaluate(model, tasks, ["local_choice"], use_cache=cache)
    assert left == [0]
    model.close()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"dtype": "float16"}, RecipeError, "unknown in `--model_args`: dtype"),
        ({"trust_remote_code": True}, RecipeError, "unknown in `--model_args`: trust_remote_code"),
        ({"engine": "llama"}, RecipeError, "no engine `llama`"),
        ({"engine": "onnxruntime"}, EngineError, "does not run in onnxruntime"),
    ],
)
def test_wrong_model_arguments_are_refused(
    tiny_gguf: Path, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        EngineLM(tiny_gguf, **arguments)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 4}, "cannot generate with `num_beams`"),
        ({"typical_p": 0.5, "bad": 1}, "cannot generate with `bad`, `typical_p`"),
        ({"max_gen_toks": 0}, "cannot answer in `0` tokens"),
        ({"do_sample": True, "temperature": -1}, "cannot sample with `temperature`"),
    ],
)
def test_wrong_generation_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_generation(settings, default_tokens=9, seed=0)


def test_generation_settings_mean_what_they_do_in_the_harness() -> None:
    sampling, ends = read_generation(
        {"until": ["a", ""], "max_new_tokens": 5, "do_sample": False, "temperature": 0.7, "num_beams": 1},
        default_tokens=9,
        seed=3,
    )
    assert (sampling.temperature, ends.max_new_tokens, ends.stop_strings) == (0.0, 5, ("a",))
    sampling, ends = read_generation(
        {"temperature": 0.7, "top_p": 0.9, "until": "b"}, default_tokens=9, seed=3
    )
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.7, 0.9, 3)
    assert (ends.max_new_tokens, ends.stop_strings) == (9, ("b",))


def test_what_cannot_be_scored_is_refused(ours: EngineLM) -> None:
    with pytest.raises(EngineError, match="a continuation of 70 tokens"):
        ours._loglikelihood_tokens([(None, [5], [6] * 70)])
    with pytest.raises(EngineError, match="a continuation of 0 tokens"):
        ours._loglikelihood_tokens([(None, [5], [])])
    with pytest.raises(EngineError, match="an answer of 99 tokens fills the context of 64"):
        ours.generate_until(asks("generate_until", [("the", {"max_gen_toks": 99})]))
    with pytest.raises(RecipeError, match="cannot choose the chat template `tools`"):
        ours.chat_template("tools")


def test_a_context_of_blanks_is_an_empty_one(ours: EngineLM) -> None:
    blank, empty = ours.loglikelihood(asks("loglikelihood", [(" ", "the"), ("", " the")]))
    assert blank == empty


def test_a_tokenizer_that_adds_its_own_bos_token(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    path.write_text(json.dumps(tokenizer))
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32")
    ours = EngineLM(folder, threads=1)
    for text in ("the thing", "<|im_start|>user", ""):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(
            text, add_special_tokens=False
        )
    assert ours.tok_encode("the") == [1, *EngineLM(folder, threads=1, add_bos_token=False).tok_encode("the")]
    pairs = asks("loglikelihood", [("the cat", " and"), ("<|im_start|>the cat", " and"), ("", "and")])
    found, expected = ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)


SOURCES_AND_TARGETS = (
    ("the thing", "and an"),
    ("the cat ", " in the"),
    ("", "the"),
    ("too long for it " * 30, "the end"),
)


@pytest.mark.parametrize("name", ["tiny_t5", "tiny_flan_t5"])
def test_an_encoder_decoder_scores_as_in_the_hugging_face_backend(
    request: pytest.FixtureRequest, name: str
) -> None:
    folder: Path = request.getfixturevalue(name)
    theirs = HFLM(
        pretrained=load_language_model(folder, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
        max_length=MAX_LENGTH,
    )
    ours = EngineLM(folder, threads=1, max_length=MAX_LENGTH)
    for kind, asked in (
        ("loglikelihood", SOURCES_AND_TARGETS),
        ("loglikelihood_rolling", [(text,) for text in TEXTS]),
    ):
        found = np.array(getattr(ours, kind)(asks(kind, asked)), dtype=np.float64)
        expected = getattr(theirs, kind)(asks(kind, asked), disable_tqdm=True)
        np.testing.assert_allclose(found, np.array(expected, dtype=np.float64), atol=1e-4)
    settings = {"max_gen_toks": 5}
    (answer,) = ours.generate_until(asks("generate_until", [("the thing", settings)]))
    (longer,) = theirs.generate_until(asks("generate_until", [("the thing", settings)]), disable_tqdm=True)
    assert longer.startswith(answer)
    assert answer
    ours.close()


def test_a_tied_head_is_scored_alike_by_the_backend_that_loads_the_folder_itself(tiny_t5: Path) -> None:
    theirs = HFLM(pretrained=str(tiny_t5), device="cpu", dtype="float32", max_length=MAX_LENGTH)
    ours = EngineLM(tiny_t5, threads=1, max_length=MAX_LENGTH)
    requests = asks("loglikelihood", SOURCES_AND_TARGETS)
    found = ours.loglikelihood(requests)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    ours.close()


def test_a_head_of_its_own_scores_as_it_stands_in_the_file(tiny_flan_t5: Path) -> None:
    """The harness ties the weights of what it loads; transformers 5 then puts the embedding in the head's place."""
    stored = load_file(tiny_flan_t5 / "model.safetensors")
    stacks = AutoModelForSeq2SeqLM.from_pretrained(tiny_flan_t5, dtype=torch.float32).eval()
    source, target = [7, 8, 9, 1], [11, 5, 12]
    with torch.inference_mode():
        read = stacks.get_encoder()(input_ids=torch.tensor([source])).last_hidden_state
        states = stacks.get_decoder()(
            input_ids=torch.tensor([[0, *target[:-1]]]), encoder_hidden_states=read
        ).last_hidden_state[0]
    nats = {
        name: (states @ stored[name].T).log_softmax(-1)[range(len(target)), target].sum().item()
        for name in ("lm_head.weight", "shared.weight")
    }
    ours = EngineLM(tiny_flan_t5, threads=1, max_length=MAX_LENGTH)
    ((found, _),) = ours._loglikelihood_tokens([(None, source, target)])
    assert found == pytest.approx(nats["lm_head.weight"], abs=1e-4)
    assert abs(found - nats["shared.weight"]) > 1
    ours.close()


def test_a_refused_system_message_is_left_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        + template.read_text()
    )
    model = EngineLM(folder, threads=1)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert model.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    template.write_text("{{ raise_exception('no messages at all') }}")
    with pytest.raises(EngineError, match="no messages at all"):
        EngineLM(folder, threads=1).apply_chat_template(chat[1:])
