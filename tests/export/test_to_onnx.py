from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ammd.errors import ExportError
from ammd.export import to_onnx
from ammd.export.half_storage import halve_storage
from ammd.export.settings import OnnxSettings
from ammd.export.to_onnx import write_onnx

needs_new_builder = pytest.mark.skipif(
    to_onnx._release("onnxruntime-genai") < to_onnx._FIRST_WITH_NEW_OPTIONS,
    reason="older builders know no int8, and mix it into k_quant unasked",
)


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "onnx-int4"
    write_onnx(tiny_checkpoint, folder)
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
        write_onnx(checkpoint, tmp_path / "onnx")


def test_builder_that_writes_nothing_is_an_error(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "run_module", lambda *_, **__: None)
    with pytest.raises(ExportError, match=r"wrote no `model\.onnx`"):
        write_onnx(tiny_checkpoint, tmp_path / "onnx")


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
    assert option in to_onnx.builder_options("int4", OnnxSettings())


def test_an_old_builder_is_not_asked_for_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx.importlib.metadata, "version", lambda _: "0.14.1")
    with pytest.raises(ExportError, match=r"onnxruntime-genai 0\.14\.1 cannot build `onnx-int8`"):
        to_onnx.builder_options("int8", OnnxSettings())


def test_an_old_builder_is_not_asked_for_mlas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx.importlib.metadata, "version", lambda _: "0.14.1")
    with pytest.raises(ExportError, match=r"onnxruntime-genai 0\.14\.1 cannot round with `mlas`"):
        to_onnx.builder_options("int4", OnnxSettings(algorithm="mlas"))


@needs_new_builder
def test_mlas_under_an_int8_head_gives_the_tokens_of_torch_and_the_embedding_once(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_onnx(tiny_checkpoint, tmp_path / "m", settings=OnnxSettings(algorithm="mlas"))
    test_tied_embedding_is_stored_once(tmp_path / "m")
    test_genai_gives_the_tokens_and_logits_of_torch(tmp_path / "m", tiny_checkpoint)


def test_rows_of_an_odd_number_of_blocks_are_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    wanted = r"in blocks of 64 cannot hold `model\.layers\.\d\..*`: its rows of 64 weights have an odd number of blocks"
    with pytest.raises(ExportError, match=wanted):
        write_onnx(tiny_checkpoint, tmp_path / "m", settings=OnnxSettings(block_size=64))
    assert list(tmp_path.iterdir()) == []


@needs_new_builder
def test_settings_reach_the_graph(wide_checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    settings = OnnxSettings(
        block_size=64,
        symmetric=True,
        algorithm="k_quant",
        accuracy_level=1,
        head="int4",
        sensitive_layers="int4",
    )
    write_onnx(wide_checkpoint, tmp_path / "m", settings=settings)
    graph = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    found = [{entry.name: entry.i for entry in node.attribute} for node in nodes]
    assert {(entry["bits"], entry["block_size"], entry["accuracy_level"]) for entry in found} == {(4, 64, 1)}


@pytest.mark.parametrize(
    ("precision", "bits", "bound"),
    [
        pytest.param("int8", 8, 0.999, marks=needs_new_builder),
        ("fp16", None, 0.999999),
        ("fp32", None, 0.999999),
    ],
)
def test_finer_models_are_nearer_to_torch(
    tiny_checkpoint: Path, tmp_path: Path, precision: str, bits: int | None, bound: float
) -> None:
    import onnx
    import torch
    from transformers import AutoModelForCausalLM

    from ammd.runtime.engine import open_engine

    write_onnx(tiny_checkpoint, tmp_path / "m", precision=precision)
    graph = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False).graph
    found = {
        entry.i
        for node in graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
        for entry in node.attribute
        if entry.name == "bits"
    }
    assert found == ({bits} if bits else set())
    ids = [1, 20, 30, 40]
    with open_engine(tmp_path / "m", threads=1, context_tokens=16) as engine:
        logits = engine.prefill(ids).copy()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        wanted = model(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.corrcoef(logits, wanted)[0, 1] > bound


@needs_new_builder
def test_an_untied_int8_model_keeps_its_own_embedding(
    build_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from ammd.runtime.model_file import read_model_file

    checkpoint = build_checkpoint(tmp_path / "untied", layers=1, tied=False)
    write_onnx(checkpoint, tmp_path / "m", precision="int8")
    assert read_model_file(tmp_path / "m").tied_head is False


@needs_new_builder
def test_an_int8_model_holds_its_tied_embedding_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Weights lie one after another in the file, so its size tells what is stored."""
    import onnx

    write_onnx(tiny_checkpoint, tmp_path / "m", precision="int8")
    graph = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False).graph
    lengths = [
        int(entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    assert (tmp_path / "m" / "model.onnx.data").stat().st_size == sum(lengths)
    sizes = {tuple(tensor.dims) for tensor in graph.initializer}
    vocabulary = _vocabulary(tmp_path / "m")
    assert (vocabulary, 64) not in sizes
    assert not [node for node in graph.node if node.op_type == "Gather" and "embed" in node.name]


def _matrix_types(folder: Path) -> dict[str, int]:
    """ONNX's numbers of the types that stored matrices have, by tensor, rotary tables left out."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    found = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    return {name: tensor.data_type for name, tensor in found.items() if "cache" not in name}


def test_an_fp16_model_stores_each_matrix_once_and_in_halves(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    from ammd.runtime.model_file import read_model_file

    write_onnx(tiny_checkpoint, tmp_path / "wide", precision="fp32")
    write_onnx(tiny_checkpoint, tmp_path / "m", precision="fp16")
    types = _matrix_types(tmp_path / "m")
    assert set(types.values()) == {onnx.TensorProto.FLOAT16}
    assert len(types) == len(_matrix_types(tmp_path / "wide"))
    assert read_model_file(tmp_path / "m").tied_head is True


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    import onnx

    table = onnx.numpy_helper.from_array(np.array([[1.0, 70000.0]], np.float32), "model.embed_tokens.weight")
    node = onnx.helper.make_node("Gather", [table.name, "ids"], ["rows"])
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [None])
    rows = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, [None, 2])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [ids], [rows], [table]))
    paths = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    onnx.save(model, paths[0], save_as_external_data=True, location=paths[1].name, size_threshold=0)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(ExportError, match=r"`model\.embed_tokens\.weight` holds a weight that F16 cannot"):
        halve_storage(*paths)
    assert [path.read_bytes() for path in paths] == before


@needs_new_builder
def test_a_head_that_is_kept_is_stored_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    from ammd.runtime.model_file import read_model_file

    write_onnx(tiny_checkpoint, tmp_path / "m", settings=OnnxSettings(head="float32"))
    vocabulary = _vocabulary(tmp_path / "m")
    graph = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False).graph
    heads = [tensor for tensor in graph.initializer if vocabulary in tensor.dims]
    assert [tensor.data_type for tensor in heads] == [onnx.TensorProto.FLOAT]
    assert read_model_file(tmp_path / "m").tied_head is True


def test_an_old_builder_is_not_asked_to_keep_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx.importlib.metadata, "version", lambda _: "0.14.1")
    with pytest.raises(ExportError, match=r"onnxruntime-genai 0\.14\.1 cannot keep the head"):
        to_onnx.builder_options("int4", OnnxSettings(head="float32"))


def _vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"])
