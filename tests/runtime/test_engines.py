"""What all engines promise, each against transformers on the same tiny checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime.artifact_ref import EngineKind
from ammd.runtime.engine import Engine, open_engine
from ammd.runtime.generate import Ends, generate
from ammd.runtime.sampling import Sampling
from ammd.runtime.torch_engine import TorchEngine

TEXT = "the 12 Ünï 中文 😀 <|im_start|>x"
CONTEXT = 160

# float32 everywhere but llama.cpp's F16 KV cache; logits of the tiny model are of order 1
TOLERANCE = {
    EngineKind.TORCH: 1e-4,
    EngineKind.LLAMA_CPP: 5e-3,
    EngineKind.ONNX_GENAI: 1e-4,
    EngineKind.ONNX_RUNTIME: 1e-4,
}
FORMS = [
    (EngineKind.TORCH, "tiny_checkpoint"),
    (EngineKind.LLAMA_CPP, "tiny_gguf"),
    (EngineKind.ONNX_GENAI, "tiny_onnx"),
    (EngineKind.ONNX_RUNTIME, "tiny_onnx"),
    (EngineKind.ONNX_RUNTIME, "tiny_standard_onnx"),
]


@pytest.fixture(scope="module", params=FORMS, ids=[f"{kind.value}-{name}" for kind, name in FORMS])
def form(request: pytest.FixtureRequest) -> tuple[EngineKind, str]:
    value: tuple[EngineKind, str] = request.param
    return value


@pytest.fixture(scope="module")
def kind(form: tuple[EngineKind, str]) -> EngineKind:
    return form[0]


@pytest.fixture(scope="module")
def path(form: tuple[EngineKind, str], request: pytest.FixtureRequest) -> Path:
    value: Path = request.getfixturevalue(form[1])
    return value


@pytest.fixture(scope="module")
def engine(path: Path, kind: EngineKind) -> Iterator[Engine]:
    with open_engine(path, threads=1, context_tokens=CONTEXT, kind=kind) as opened:
        yield opened


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> TorchEngine:
    return TorchEngine(tiny_checkpoint, threads=1, context_tokens=CONTEXT)


def token_ids(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(3, 260, size=count)]


def test_same_seed_draws_the_same_answer_in_every_engine(engine: Engine, exact: TorchEngine) -> None:
    sampling = Sampling(temperature=1.5, top_k=100, top_p=0.9, min_p=0.001, repetition_penalty=1.2, seed=5)

    def answer(source: Engine) -> list[int]:
        pieces = generate(source, token_ids(40), sampling=sampling, ends=Ends(max_new_tokens=24))
        return [piece.token_id for piece in pieces]

    assert answer(engine) == answer(exact)
    assert len(set(answer(engine))) > 12  # no loop that all would fall into


def test_facts_of_the_model(engine: Engine, exact: TorchEngine) -> None:
    assert engine.vocab_size == exact.vocab_size == 268
    assert engine.bos_token_id == 1
    assert 2 in engine.end_token_ids
    assert engine.settings["threads"] == 1
    assert engine.settings["context_tokens"] == CONTEXT


def test_token_ids_equal_those_of_transformers(engine: Engine, exact: TorchEngine) -> None:
    assert engine.tokenize(TEXT) == exact.tokenize(TEXT)
    assert engine.tokenize(TEXT, add_special=True) == exact.tokenize(TEXT, add_special=True)


def test_text_comes_back_without_special_tokens(engine: Engine) -> None:
    ids = engine.tokenize(TEXT)
    assert engine.detokenize(ids) == TEXT.replace("<|im_start|>", "")


def test_streamed_text_is_whole_characters(engine: Engine) -> None:
    stream = engine.text_stream()
    pieces = [stream(token) for token in engine.tokenize("a中😀b")]
    assert "".join(pieces) == "a中😀b"
    assert "\ufffd" not in "".join(pieces)


def test_chat_is_rendered_as_by_transformers(engine: Engine, exact: TorchEngine) -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": 'Say "é" & <b>.\n'}]
    assert engine.render_chat(messages) == exact.render_chat(messages)
    closed = engine.render_chat(messages, add_generation_prompt=False)
    assert closed == exact.render_chat(messages, add_generation_prompt=False)


def test_prefill_and_decode_give_the_logits_of_transformers(
    engine: Engine, exact: TorchEngine, kind: EngineKind
) -> None:
    ids = token_ids(20)
    rows = [engine.prefill(ids[:10]).copy(), *(engine.decode(token).copy() for token in ids[10:])]
    expected = np.concatenate(list(exact.logits(ids, start=9)))
    np.testing.assert_allclose(np.stack(rows), expected, atol=TOLERANCE[kind])


def test_cached_decode_equals_a_full_pass(engine: Engine, kind: EngineKind) -> None:
    ids = token_ids(20)
    engine.prefill(ids[:5])
    for token in ids[5:]:
        stepped = engine.decode(token)
    np.testing.assert_allclose(stepped.copy(), engine.prefill(ids), atol=TOLERANCE[kind])


@pytest.mark.parametrize("start", [0, 7, 70])
def test_logits_in_chunks_equal_those_of_transformers(
    engine: Engine, exact: TorchEngine, kind: EngineKind, start: int
) -> None:
    ids = token_ids(140)  # more than two chunks
    found = np.concatenate([rows.copy() for rows in engine.logits(ids, start=start)])
    assert found.shape == (140 - start, engine.vocab_size)
    np.testing.assert_allclose(
        found, np.concatenate(list(exact.logits(ids, start=start))), atol=TOLERANCE[kind]
    )


def test_a_new_prompt_forgets_the_old_one(engine: Engine) -> None:
    ids = token_ids(12)
    first = engine.prefill(ids).copy()
    engine.prefill(token_ids(30))
    engine.decode(5)
    np.testing.assert_array_equal(engine.prefill(ids), first)


def test_prompt_longer_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match=f"{CONTEXT + 1} tokens do not fit into a context of {CONTEXT}"):
        engine.prefill(token_ids(CONTEXT + 1))
    with pytest.raises(EngineError, match="empty prompt"):
        engine.prefill([])


def test_full_context_is_refused(engine: Engine) -> None:
    engine.prefill(token_ids(CONTEXT))
    with pytest.raises(EngineError, match=f"context of {CONTEXT} tokens is full"):
        engine.decode(5)


def test_closing_twice_is_harmless(path: Path, kind: EngineKind) -> None:
    opened = open_engine(path, threads=1, context_tokens=16, kind=kind)
    with opened:
        opened.prefill([5])
    opened.close()


@pytest.mark.parametrize(
    ("kind", "fixture"), FORMS[1:], ids=[f"{kind.value}-{name}" for kind, name in FORMS[1:]]
)
def test_exported_files_run_without_torch(
    kind: EngineKind, fixture: str, request: pytest.FixtureRequest
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from ammd.runtime.engine import open_engine\n"
        "from ammd.runtime.artifact_ref import EngineKind\n"
        "import ammd.runtime.parity, ammd.runtime.answers, ammd.runtime.bench_child\n"
        "kind = EngineKind(sys.argv[2])\n"
        "with open_engine(Path(sys.argv[1]), threads=1, context_tokens=64, kind=kind) as engine:\n"
        "    text = engine.render_chat([{'role': 'user', 'content': 'hi'}])\n"
        "    engine.prefill(engine.tokenize(text)); engine.decode(5); engine.detokenize([5])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    path = str(request.getfixturevalue(fixture))
    command = [sys.executable, "-c", script, path, kind.value]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
