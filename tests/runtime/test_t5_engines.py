"""An encoder-decoder behind the one interface: the prompt is its source, the response its target."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammd.encoder_decoder import load_language_model
from ammd.errors import EngineError
from ammd.export.to_gguf import write_gguf
from ammd.runtime import parity, reference
from ammd.runtime.architecture import read_architecture
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.chat import chat
from ammd.runtime.device_bench import check_files
from ammd.runtime.engine import START_TOKEN, Engine, open_engine
from ammd.runtime.generate import Ends
from ammd.runtime.limits import KL_LIMITS
from ammd.runtime.llama_options import LlamaOptions
from ammd.runtime.sampling import Sampling
from ammd.runtime.torch_batch import nats_of, response_states
from ammd.runtime.traffic import traffic_of

CONTEXT = 96
QUESTION = "Question: what is the name of the colour in the hat?"
OTHER = "summarize: Water that falls as rain runs down in small streams."


@pytest.fixture(scope="module")
def files(unigram_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint and the file made of it."""
    path = tmp_path_factory.mktemp("t5") / "student-f32.gguf"
    write_gguf(unigram_t5, path, name="tiny", type_name="f32")
    return {"torch": unigram_t5, "llama.cpp": path}


@pytest.fixture(params=["torch", "llama.cpp"])
def engine(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Engine]:
    with open_engine(files[request.param], threads=1, context_tokens=CONTEXT) as opened:
        yield opened


def expected_rows(folder: Path, source: list[int], target: list[int]) -> np.ndarray:
    """Return transformers' own logits after the start token and each token of the target."""
    model = load_language_model(folder, dtype=torch.float32)
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *target]]), use_cache=False
        )
    return output.logits[0].numpy()


def tolerance(rows: np.ndarray) -> float:
    return float(2e-2 * np.abs(rows).max())  # llama.cpp keeps keys and values in F16


def test_prefill_and_decode_give_transformers_logits(engine: Engine, files: dict[str, Path]) -> None:
    source, target = engine.tokenize(QUESTION, add_special=True), [7, 30, 9, 12, 44]
    expected = expected_rows(files["torch"], source, target)
    rows = [engine.prefill(source).copy(), *(engine.decode(token).copy() for token in target)]
    np.testing.assert_allclose(rows, expected, atol=tolerance(expected))


def test_logits_begin_after_the_start_token(engine: Engine, files: dict[str, Path]) -> None:
    source, target = engine.tokenize(QUESTION, add_special=True), [*range(5, 75)]  # more than one chunk
    target = target[: CONTEXT - len(source)]
    found = [chunk.copy() for chunk in engine.logits([*source, *target], start=len(source) - 1)]
    expected = expected_rows(files["torch"], source, target)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=tolerance(expected))


def test_a_source_leaves_nothing_to_the_next(engine: Engine) -> None:
    source, other = (engine.tokenize(text, add_special=True) for text in (QUESTION, OTHER))
    first = [engine.prefill(source).copy(), engine.decode(9).copy()]
    list(engine.logits([*other, 7, 8], start=len(other) - 1))
    engine.prefill(other[:3])
    engine.decode(30)
    again = [engine.prefill(source).copy(), engine.decode(9).copy()]
    np.testing.assert_array_equal(again, first)


def test_source_and_target_share_the_context(engine: Engine) -> None:
    with pytest.raises(EngineError, match=f"{CONTEXT + 1} tokens do not fit into a context of {CONTEXT}"):
        engine.prefill([5] * (CONTEXT + 1))
    engine.prefill([5] * (CONTEXT - 2))
    engine.decode(7)
    engine.decode(7)
    with pytest.raises(EngineError, match="is full"):
        engine.decode(7)
    engine.prefill([5] * CONTEXT)
    with pytest.raises(EngineError, match="empty"):
        engine.prefill([])


def test_a_question_becomes_a_source(engine: Engine) -> None:
    assert engine.settings[START_TOKEN] == 0
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": QUESTION},
    ]
    text = engine.render_chat(messages)
    assert text == f"{QUESTION}</s>"
    assert engine.tokenize(text) == engine.tokenize(QUESTION, add_special=True)
    assert engine.render_chat([{"role": "system", "content": "Short."}, *messages]) == f"Short.\n\n{text}"


def test_text_begins_without_a_space(engine: Engine) -> None:
    ids = engine.tokenize("The fox and the hat")
    stream = engine.text_stream()
    assert "".join(stream(token) for token in ids) == engine.detokenize(ids) == "The fox and the hat"


def test_every_question_of_a_chat_stands_alone(files: dict[str, Path]) -> None:
    answers = []
    for turns in ([OTHER, QUESTION], [QUESTION]):
        out = io.StringIO()
        chat(
            files["llama.cpp"],
            prompt=None,
            turns=turns,
            out=out,
            sampling=Sampling(),
            ends=Ends(max_new_tokens=6),
            context_tokens=CONTEXT,
            threads=1,
        )
        answers.append(out.getvalue().strip("> \n").split("\n> ")[-1])
    assert answers[0] == answers[1] != ""


def test_a_batch_reads_each_pair_as_source_and_target(files: dict[str, Path]) -> None:
    model = load_language_model(files["torch"], dtype=torch.float32)
    pairs = [([9, 30, 12, 1], [7, 8, 1]), ([20, 1], [5, 6, 7, 8, 9])]
    found = dict(response_states(model, pairs))
    for place, (source, target) in enumerate(pairs):
        logprobs = torch.tensor(expected_rows(files["torch"], source, target)[:-1]).log_softmax(-1)
        expected = [-float(row[token]) for row, token in zip(logprobs, target, strict=True)]
        assert nats_of(model, found[place], target) == pytest.approx(expected, abs=1e-4)  # padded otherwise


def test_batch_options_do_not_cut_a_source(files: dict[str, Path]) -> None:
    options = LlamaOptions(batch_tokens=4, micro_batch_tokens=4)
    with open_engine(files["llama.cpp"], threads=1, context_tokens=CONTEXT, llama=options) as engine:
        assert engine.settings["micro_batch_tokens"] == CONTEXT  # what is in effect
        rows = engine.prefill(engine.tokenize(QUESTION, add_special=True)).copy()
    with open_engine(files["llama.cpp"], threads=1, context_tokens=CONTEXT) as engine:
        np.testing.assert_array_equal(engine.prefill(engine.tokenize(QUESTION, add_special=True)), rows)


def test_a_file_that_does_not_say_where_its_decoder_begins_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "student.gguf"
    data = files["llama.cpp"].read_bytes()
    path.write_bytes(data.replace(b"t5.decoder_start_token_id", b"t5.decoder_other_token_id"))
    with pytest.raises(EngineError, match="does not say which token its decoder begins with"):
        open_engine(path, threads=1, context_tokens=CONTEXT)


def test_a_token_reads_the_decoder_alone(
    files: dict[str, Path], build_unigram_t5: Callable[..., Path], tmp_path: Path
) -> None:
    attention, forward = 64 * 16 * 6, 64 * 128
    decoder = 2 * (8 * attention + 3 * forward + 3 * 64) + 32 * 6 + 64  # norms and the table of distances
    vocabulary = load_language_model(files["torch"], dtype=torch.float32).config.vocab_size
    whole = 4 * (decoder + (vocabulary + 1) * 64)
    of_file, of_checkpoint = (read_architecture(files[name]) for name in ("llama.cpp", "torch"))
    assert of_file.weight_bytes_per_token == whole
    assert of_file.kv_values_per_token is None  # it keeps none of the source
    assert of_checkpoint.weight_bytes_per_token == whole - 4 * 2 * 2 * attention  # made once a source
    assert of_checkpoint.kv_values_per_token == 2 * 2 * 6 * 16
    larger = build_unigram_t5(tmp_path / "larger", encoder_layers=5)
    assert read_architecture(larger) == of_checkpoint


@pytest.fixture(scope="module")
def proof(
    files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], dict[str, Any]]:
    """Return what the proofs find about a file of the checkpoint."""
    folder = tmp_path_factory.mktemp("reference")
    heldout = folder / "prompts.jsonl"
    heldout.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (QUESTION, OTHER)))
    request = {
        "checkpoint": str(files["torch"]),
        "heldout": str(heldout),
        "folder": str(folder),
        "threads": 1,
    }
    reference.build({**request, "texts": 2, "greedy_prompts": 2, "greedy_tokens": 8})
    asked = {"checkpoint": str(files["torch"]), "reference": str(folder), "threads": 1}
    return lambda path: parity.measure({**asked, "path": str(path)})


def test_a_file_is_proven_without_a_chat_template(
    files: dict[str, Path], proof: Callable[[Path], dict[str, Any]]
) -> None:
    record = proof(files["llama.cpp"])
    assert record["faults"] == []
    assert record["kl_nats"] < KL_LIMITS["gguf-f32"]
    assert (record["greedy_equal"], record[START_TOKEN], record["end_token_ids"]) == (2, 0, [1])
    assert record["notes"] == [
        "there is no chat template: the source is the question, the end token behind it",
        "white space at the end of a text is dropped, which the checkpoint reads as a token",
    ]


def test_a_decoder_that_begins_otherwise_is_a_fault(
    files: dict[str, Path], proof: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    key, kind = b"t5.decoder_start_token_id", (4).to_bytes(4, "little")  # a uint32
    found = files["llama.cpp"].read_bytes()
    assert key + kind + bytes(4) in found
    path = tmp_path / "student-f32.gguf"
    path.write_bytes(found.replace(key + kind + bytes(4), key + kind + bytes([5, 0, 0, 0])))
    assert proof(path)["faults"] == ["the decoder begins with token 5, the checkpoint's with 0"]


def test_what_measures_decoders_alone_refuses_a_file(files: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="is an encoder-decoder, and published rates of phones"):
        traffic_of(files["llama.cpp"])
    with pytest.raises(
        EngineError, match="is an encoder-decoder, which `llama-bench` does not run"
    ) as caught:
        check_files([ArtifactRef(name="t5", path=files["llama.cpp"])])
    assert "--engine llama.cpp" in caught.value.hint
