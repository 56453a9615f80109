"""flan-t5-small from a package: its weights are those of the package's own graphs, and files of it are proven."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.encoder_decoder import load_language_model
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.to_gguf import write_gguf
from ammd.runtime.engine import open_engine
from ammd.runtime.generate import Ends, generate
from ammd.runtime.llama_tools import native_tool
from ammd.runtime.sampling import Sampling
from ammd.runtime.settings import VerifySettings
from ammd.runtime.verify import verify_file

pytestmark = pytest.mark.real
QUESTIONS = (
    "translate English to German: How old are you?",
    "summarize: Water that falls as rain on the hills runs down in small streams, which meet and grow into a river.",
    "Edited the retry logic in fetch.py to use a growing delay; ran pytest; all tests pass.",
    "Is the following sentence true? Water is wet.",
    "Question: which colour has the sky on a clear day? Answer in one word.",
    "Renamed the class Reader to Parser in all modules and updated the documentation.",
    "translate English to French: The house is small, and the garden is large.",
    "summarize: The committee met on Tuesday. It decided to build a bridge over the river by next spring.",
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flan") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    return path


def float_graph(path: Path) -> Any:
    """Return the package's graph with its own int8 matrices, whose products read what is not rounded."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounded = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "DynamicQuantizeLinear"
    }
    sums = {node.output[0]: node for node in graph.node if node.op_type == "MatMulInteger"}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    for node in graph.node:
        product = sums.get(casts.get(node.input[0], "") if node.op_type == "Mul" else "")
        if product is None:
            continue
        base = product.input[1].removesuffix("_quantized")
        matrix = stored[product.input[1]].astype(np.float32) - stored[f"{base}_zero_point"].astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(matrix * stored[f"{base}_scale"], f"{base}_float"))
        node.CopyFrom(
            helper.make_node("MatMul", [rounded[product.input[0]], f"{base}_float"], list(node.output))
        )
    return model.SerializeToString()


def test_the_checkpoint_is_the_packages_model(flan_t5_small: Path) -> None:
    import onnxruntime

    files = runpy.run_path(str(Path(__file__).parents[1] / "t5_files.py"))
    package = files["packaged_flan_t5_small"]()
    encoder, decoder = (
        onnxruntime.InferenceSession(float_graph(package / f"{name}.onnx")) for name in ("encoder", "decoder")
    )
    with open_engine(flan_t5_small, threads=1, context_tokens=128) as engine:
        for question in QUESTIONS[:4]:
            source = engine.tokenize(question, add_special=True)
            pieces = generate(engine, source, sampling=Sampling(), ends=Ends(max_new_tokens=16))
            target = [piece.token_id for piece in pieces]
            found = np.concatenate(
                [chunk.copy() for chunk in engine.logits([*source, *target], start=len(source) - 1)]
            )
            mask = np.ones((1, len(source)), np.int64)
            (states,) = encoder.run(None, {"input_ids": np.array([source]), "attention_mask": mask})
            feed = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            (expected,) = decoder.run(None, {"input_ids": np.array([[0, *target]]), **feed})
            np.testing.assert_allclose(found, expected[0], atol=2e-3)  # of order 30: sums in another order


@pytest.fixture(scope="module")
def files(flan_t5_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The model as GGUF, by scheme."""
    folder = tmp_path_factory.mktemp("gguf")
    found = {f"gguf-{kind}": folder / f"student-{kind}.gguf" for kind in ("f32", "f16", "q8_0", "q4_k_m")}
    for kind in ("f32", "f16"):
        write_gguf(flan_t5_small, found[f"gguf-{kind}"], name="flan-t5-small", type_name=kind)
    for kind in ("q8_0", "q4_k_m"):
        quantize_gguf(found["gguf-f16"], found[f"gguf-{kind}"], type_name=kind.upper())
    return found


@pytest.mark.skipif(shutil.which("cmake") is None, reason="llama.cpp's programs are built with cmake")
def test_llama_completion_writes_transformers_greedy_text(
    flan_t5_small: Path, files: Mapping[str, Path]
) -> None:
    """The program that a model card names for these files."""
    import torch
    from transformers import AutoTokenizer

    program, tokenizer = native_tool("llama-completion"), AutoTokenizer.from_pretrained(flan_t5_small)
    model = load_language_model(flan_t5_small, dtype=torch.float32)
    for question in QUESTIONS[:4]:
        command = [program, "-m", files["gguf-f16"], "-n", "24", "-t", "1", "--temp", "0", "-p", question]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        source = tokenizer(question, return_tensors="pt").input_ids
        said = model.generate(source, max_new_tokens=24, do_sample=False)
        expected = tokenizer.decode(said[0], skip_special_tokens=True)
        assert done.stdout.strip().removesuffix("[end of text]").strip() == expected.strip()


@pytest.fixture(scope="module")
def prove(flan_t5_small: Path, prompts: Path, files: Mapping[str, Path]) -> Callable[[str], dict[str, Any]]:
    settings = VerifySettings(texts=len(QUESTIONS), greedy_prompts=len(QUESTIONS), greedy_tokens=24)
    return lambda scheme: verify_file(
        files[scheme], against=flan_t5_small, heldout=prompts, settings=settings
    )


@pytest.mark.parametrize("scheme", ["gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m"])
def test_a_file_is_proven(prove: Callable[[str], dict[str, Any]], scheme: str) -> None:
    record = prove(scheme)
    assert record["kl_nats"] < record["kl_limit_nats"]
    assert any("no chat template" in note for note in record["notes"])
    assert record["end_token_ids"] == [1]
    if scheme in ("gguf-f32", "gguf-f16"):
        assert record["top1_agreement"] > 0.99
        assert record["greedy_equal"] == len(QUESTIONS)
