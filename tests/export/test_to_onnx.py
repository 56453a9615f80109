from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ammd.errors import ExportError
from ammd.export import to_onnx
from ammd.export.to_onnx import write_int4_onnx


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "onnx-int4"
    write_int4_onnx(tiny_checkpoint, folder)
    return folder


def test_folder_is_complete_and_nothing_lies_beside_it(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    needed = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= names
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_weights_are_named_relative_to_the_graph(built: Path) -> None:
    import onnx

    graph = onnx.load(built / "model.onnx", load_external_data=False).graph
    places = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"model.onnx.data"}


def test_matrices_are_int4_or_int8_in_blocks_of_32(built: Path) -> None:
    import onnx

    graph = onnx.load(built / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    attributes = [{entry.name: entry.i for entry in node.attribute} for node in nodes]
    assert {entry["bits"] for entry in attributes} <= {4, 8}
    assert 4 in {entry["bits"] for entry in attributes}
    assert {entry["block_size"] for entry in attributes} == {32}
    assert {entry["accuracy_level"] for entry in attributes} == {4}
    assert not [node for node in graph.node if node.op_type == "MatMul"]


def test_tied_embedding_is_stored_once(built: Path) -> None:
    import onnx

    graph = onnx.load(built / "model.onnx", load_external_data=False).graph
    (gather,) = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    (head,) = [node for node in graph.node if node.op_type == "MatMulNBits" and "lm_head" in node.name]
    producers = {output: node for node in graph.node for output in node.output}
    table = producers[gather.input[0]].input[0] if gather.input[0] in producers else gather.input[0]
    assert table == head.input[1]


def test_genai_gives_the_tokens_and_logits_of_torch(built: Path, tiny_checkpoint: Path) -> None:
    import onnxruntime_genai as genai
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "the 12 cats in a hat\n\tsay: hello, 你好!"
    expected_ids = AutoTokenizer.from_pretrained(tiny_checkpoint).encode(text, add_special_tokens=False)
    model = genai.Model(str(built))
    ids = [int(token_id) for token_id in genai.Tokenizer(model).encode(text)]
    assert ids == expected_ids
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 1)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(ids, dtype=np.int32))
    found = np.asarray(generator.get_output("logits")).reshape(-1)[-1 * _vocabulary(built) :]
    with torch.no_grad():
        torch_model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        wanted = torch_model(torch.tensor([ids])).logits[0, -1].numpy()
    # int4 moves a random model's logits by some percent; a wrong graph makes them unrelated.
    assert np.corrcoef(found, wanted)[0, 1] > 0.95


def test_configuration_has_end_tokens_context_and_template(built: Path) -> None:
    config = json.loads((built / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [2]
    assert config["model"]["context_length"] == config["search"]["max_length"] == 512
    assert (built / "chat_template.jinja").exists() or "chat_template" in (
        built / "tokenizer_config.json"
    ).read_text()


def test_unknown_architecture_is_refused_with_its_reason(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(ExportError, match="model is not currently supported"):
        write_int4_onnx(checkpoint, tmp_path / "onnx")


def test_builder_that_writes_nothing_is_an_error(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "run_module", lambda *_, **__: None)
    with pytest.raises(ExportError, match=r"wrote no `model\.onnx`"):
        write_int4_onnx(tiny_checkpoint, tmp_path / "onnx")


@pytest.mark.parametrize(
    ("version", "config", "refused"),
    [
        ("4.57.6", {"rope_parameters": {"rope_theta": 1e5}}, True),
        ("4.57.6", {"rope_parameters": {"rope_theta": 1e5}, "rope_theta": 1e5}, False),
        ("4.57.6", {"rope_theta": 1e5}, False),
        ("5.24.0", {"rope_parameters": {"rope_theta": 1e5}}, False),
    ],
)
def test_checkpoint_that_transformers_4_would_misread_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, config: dict[str, object], refused: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(to_onnx.importlib.metadata, "version", lambda _: version)
    if refused:
        with pytest.raises(ExportError, match="would misread its rotary base"):
            to_onnx._check_rope(tmp_path)
    else:
        to_onnx._check_rope(tmp_path)


@pytest.mark.parametrize(
    ("version", "option"), [("0.14.1", "int4_is_symmetric=false"), ("0.18.0", "is_symmetric=false")]
)
def test_options_are_those_that_the_installed_builder_knows(
    monkeypatch: pytest.MonkeyPatch, version: str, option: str
) -> None:
    monkeypatch.setattr(to_onnx.importlib.metadata, "version", lambda _: version)
    assert option in to_onnx._builder_options()


def _vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"])
