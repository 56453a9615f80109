"""ONNX in standard operators, run by plain onnxruntime and compared with transformers."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ammd.artifact import hash_records, list_files
from ammd.errors import ExportError
from ammd.export import (
    dynamic_int8,
    half_weights,
    optimum_exporter,
    ort_format,
    standard_exporter,
    standard_int4,
    to_standard_onnx,
)
from ammd.export.captured import run_module
from ammd.export.optimum_exporter import missing_exporter
from ammd.export.schemes import Scheme
from ammd.export.settings import ExportSettings, OnnxSettings
from ammd.export.stage import ExportInputs, run
from ammd.export.standard_graph import GRAPH, WEIGHTS, initializers, save_graph, weight_products

needs_optimum = pytest.mark.skipif(
    missing_exporter() is not None, reason="optimum is not installed, or not for this transformers"
)
IDS = np.array([[1, 20, 30, 40, 50, 60, 70], [5, 6, 7, 8, 9, 10, 11]])
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # by name: class, what is special
    "llama": ("Llama", {}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False}),
    "qwen 2": ("Qwen2", {}),
    "qwen 3": ("Qwen3", {"head_dim": 32}),  # not hidden size by heads
}


def _model(name: str, special: dict[str, Any]) -> Any:
    import torch
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "pad_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(
            getattr(transformers, f"{name}Config")(**(settings | special))
        ).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """A model and its float32 graph, by family, each made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def export(family: str) -> tuple[Any, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp("standard")
            model = _model(*FAMILIES[family])
            model.save_pretrained(folder / "checkpoint")
            (folder / "trace").mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer's
                standard_exporter.main([str(folder / name) for name in ("checkpoint", "trace", "float32")])
            made[family] = model, folder / "float32"
        return made[family]

    return export


def _logits(path: Path, ids: Any, *, past: list[Any] | None = None) -> tuple[Any, list[Any]]:
    """Return logits and keys and values after `ids`, as an app without any code of ours gets them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    if past is None:
        kind = np.float16 if "float16" in caches[0].type else np.float32
        past = [np.zeros((len(ids), value.shape[1], 0, value.shape[3]), kind) for value in caches]
    start = past[0].shape[2]
    places = np.arange(start, start + ids.shape[1])[None].repeat(len(ids), 0)
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones((len(ids), start + ids.shape[1]), np.int64),
        "position_ids": places,
    }
    feed |= {value.name: array for value, array in zip(caches, past, strict=True)}
    logits, *present = session.run(None, feed)
    return logits, present


def _torch_logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def _kl(wanted: Any, found: Any) -> float:
    def logprobs(logits: Any) -> Any:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    return float((np.exp(logprobs(wanted)) * (logprobs(wanted) - logprobs(found))).sum(-1).mean())


@needs_optimum
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers_whole_and_step_by_step(
    exported: Callable[[str], tuple[Any, Path]], name: str
) -> None:
    model, folder = exported(name)
    wanted = _torch_logits(model)
    whole, _ = _logits(folder / GRAPH, IDS)
    assert np.abs(whole - wanted).max() < 1e-4  # float32, summed in another order
    steps, past = _logits(folder / GRAPH, IDS[:, :3])
    steps = [steps]
    for place in range(3, IDS.shape[1]):
        logits, past = _logits(folder / GRAPH, IDS[:, place : place + 1], past=past)
        steps.append(logits)
    assert np.abs(np.concatenate(steps, axis=1) - wanted).max() < 1e-4
    assert past[0].shape == (2, 2, IDS.shape[1], model.model.layers[0].self_attn.head_dim)


@needs_optimum
@pytest.mark.parametrize(("name", "copies"), [("llama", 1), ("llama, untied", 2)])
def test_a_tied_embedding_is_stored_once(
    exported: Callable[[str], tuple[Any, Path]], name: str, copies: int
) -> None:
    model, folder = exported(name)
    matrices = sum(
        parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 2
    )  # a tied one comes once
    stored = (folder / WEIGHTS).stat().st_size
    assert 4 * matrices <= stored < 4 * matrices + 300 * 64  # less than another embedding, even in bytes
    shapes = [sorted(tensor.dims) for tensor in onnx.load(folder / GRAPH).graph.initializer]
    assert shapes.count([64, 300]) == copies


@needs_optimum
def test_weights_have_the_checkpoints_names_and_nothing_tells_of_the_trace(
    exported: Callable[[str], tuple[Any, Path]],
) -> None:
    model, folder = exported("qwen 3")
    loaded = onnx.load(folder / GRAPH)
    names = {weight.name for _, weight in weight_products(loaded.graph)}
    assert names == {
        name for name, parameter in model.named_parameters() if "_proj" in name and parameter.ndim == 2
    } | {"lm_head.weight"}
    text = (folder / GRAPH).read_bytes()
    assert b"site-packages" not in text
    assert str(folder.parent).encode() not in text
    assert not any(node.doc_string or node.metadata_props for node in loaded.graph.node)


@needs_optimum
@pytest.mark.parametrize("name", ["llama", "llama, untied", "qwen 3"])
def test_smaller_models_are_further_from_transformers_in_their_order(
    exported: Callable[[str], tuple[Any, Path]], tmp_path: Path, name: str
) -> None:
    model, folder = exported(name)
    wanted = _torch_logits(model)
    half, eight = onnx.load(folder / GRAPH), onnx.load(folder / GRAPH)
    wide = dynamic_int8.wide_products(folder / GRAPH)
    made = {
        "fp16": (half, half_weights.halve_weights(half.graph)),
        "int8": (eight, dynamic_int8.quantize_int8(eight.graph, float_products=wide)),
        "int4": standard_int4.quantize_int4(onnx.load(folder / GRAPH), OnnxSettings()),
    }
    distances, sizes = [], []
    for name, (one, contents) in made.items():
        save_graph(one, tmp_path / name, contents)
        distances.append(_kl(wanted, _logits(tmp_path / name / GRAPH, IDS)[0]))
        sizes.append((tmp_path / name / WEIGHTS).stat().st_size)
    assert distances[0] < 1e-4 < distances[1] < distances[2] < 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 0.51 * (folder / WEIGHTS).stat().st_size
    assert sizes[1] < 0.27 * (folder / WEIGHTS).stat().st_size
    assert not (folder / "probe.onnx").exists()


@needs_optimum
def test_a_float16_cache_goes_on_where_it_was_left(
    exported: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    model, folder = exported("qwen 3")
    half = onnx.load(folder / GRAPH)
    save_graph(half, tmp_path, half_weights.halve_weights(half.graph))
    _, past = _logits(tmp_path / GRAPH, IDS[:, :4])
    rest, present = _logits(tmp_path / GRAPH, IDS[:, 4:], past=past)
    assert {array.dtype for array in present} == {np.dtype(np.float16)}
    assert np.array_equal(present[0][:, :, :4], past[0])
    assert rest.dtype == np.float32
    # 11 bits of mantissa, some dozen roundings one after another
    assert np.abs(rest - _torch_logits(model)[:, 4:]).max() < 12 * 2.0**-11 * np.abs(rest).max()


@needs_optimum
def test_int8_is_what_onnxruntimes_own_tool_makes(
    exported: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _, folder = exported("llama, untied")
    contents = dynamic_int8.quantize_int8(onnx.load(folder / GRAPH).graph)
    theirs = tmp_path / "theirs.onnx"
    quantize_dynamic(
        onnx.load(folder / GRAPH),
        theirs,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    stored = initializers(onnx.load(theirs).graph)
    from onnx import numpy_helper

    for node, weight in weight_products(onnx.load(folder / GRAPH).graph):
        found = b"".join(contents[f"{weight.name}/int8"]())
        assert found == numpy_helper.to_array(stored[f"{weight.name}_quantized"]).tobytes(), node.name


@needs_optimum
def test_products_with_outliers_are_computed_in_float32(
    exported: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    model, folder = exported("llama")
    spoiled = onnx.load(folder / GRAPH)
    wanted_name = "/model/layers.1/mlp/down_proj/MatMul"
    weights = initializers(spoiled.graph)
    from onnx import numpy_helper

    for part, factor in (
        ("up_proj", 3e3),
        ("down_proj", 1 / 3e3),
    ):  # one channel alone, the model stays what it is
        tensor = weights[f"model.layers.1.mlp.{part}.weight"]
        values = numpy_helper.to_array(tensor).copy()
        column = values[:, 5] if part == "up_proj" else values[5]
        column *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save_graph(spoiled, tmp_path / "spoiled")
    wide = dynamic_int8.wide_products(tmp_path / "spoiled" / GRAPH)
    assert wanted_name in wide
    distances = []
    for float_products in (wide, frozenset[str]()):
        one = onnx.load(tmp_path / "spoiled" / GRAPH)
        contents = dynamic_int8.quantize_int8(one.graph, float_products=float_products)
        save_graph(one, tmp_path / str(len(float_products)), contents)
        distances.append(
            _kl(_torch_logits(model), _logits(tmp_path / str(len(float_products)) / GRAPH, IDS)[0])
        )
    assert distances[0] < distances[1] / 4


@needs_optimum
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # k_quant divides by zero in its search
@pytest.mark.parametrize(
    "settings",
    [
        OnnxSettings(head="int4", sensitive_layers="int4", symmetric=True, accuracy_level=1),
        OnnxSettings(head="int4"),
        OnnxSettings(algorithm="k_quant", block_size=32),
        OnnxSettings(block_size=128, symmetric=True),  # rows of half a block
    ],
)
def test_settings_of_int4_reach_the_graph_and_its_lookup_reads_the_head(
    exported: Callable[[str], tuple[Any, Path]], tmp_path: Path, settings: OnnxSettings
) -> None:
    import onnxruntime

    _, folder = exported("llama")
    model, _ = standard_int4.quantize_int4(onnx.load(folder / GRAPH), settings)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    facts = [{entry.name: entry.i for entry in node.attribute} for node in products]
    head = facts[[node.output[0] for node in products].index("logits")]
    assert head["bits"] == (8 if settings.head == "int8" else 4)
    assert {entry["bits"] for entry in facts} == ({4} if settings.sensitive_layers == "int4" else {4, 8})
    assert {entry["accuracy_level"] for entry in facts} == {settings.accuracy_level}
    assert {len(node.input) for node in products} == ({3} if settings.symmetric else {4})
    # The head times one-hot vectors gives its matrix; the lookup has to give the same numbers.
    (turned,) = [node for node in model.graph.node if node.output[0] == "/model/embed_tokens/Gather_output_0"]
    assert turned.op_type == "Slice"
    found = _intermediate(model, turned.output[0])
    head_node = products[[node.output[0] for node in products].index("logits")]
    assert np.abs(found - _matrix(model, head_node, onnxruntime)[IDS]).max() < 1e-5


def _intermediate(model: Any, name: str) -> Any:
    """Return one value inside a graph, for `IDS`."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend([onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)])
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {
        value.name: np.zeros((2, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    places = np.arange(IDS.shape[1])[None].repeat(2, 0)
    feed |= {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "position_ids": places}
    return session.run([name], feed)[0]


def _matrix(model: Any, head: Any, onnxruntime: Any) -> Any:
    """Return the matrix of a product in blocks, [outputs, inputs], as onnxruntime itself multiplies with it."""
    import onnx

    columns = next(entry.i for entry in head.attribute if entry.name == "K")
    node = onnx.NodeProto()
    node.CopyFrom(head)
    node.input[0], node.output[0] = "x", "y"
    for entry in node.attribute:
        if entry.name == "accuracy_level":
            entry.i = 1
    shape = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "head",
        [shape("x", onnx.TensorProto.FLOAT, [columns, columns])],
        [shape("y", onnx.TensorProto.FLOAT, None)],
        [tensor for tensor in model.graph.initializer if tensor.name in head.input],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T


@needs_optimum
def test_the_stage_makes_a_whole_folder_and_the_same_bytes_again(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(schemes=(Scheme.ONNX_STANDARD_INT4,), onnx=OnnxSettings(ort_format=True))
    (tmp_path / "a").mkdir()
    (artifact,) = run(ExportInputs(checkpoint=tiny_checkpoint), settings, tmp_path / "a")["artifacts"]
    folder = tmp_path / "a" / "onnx-standard-int4"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (artifact["format"], artifact["path"]) == ("onnx", "onnx-standard-int4")
    assert artifact["sha256"] == hash_records(list_files(folder))
    assert 4 < artifact["bits_per_weight"] < 12
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2]
    ours, _ = _logits(folder / "model.onnx", IDS)
    packed, _ = _logits(folder / "model.ort", IDS)
    assert np.array_equal(ours, packed)
    (head,) = [
        tensor
        for tensor in onnx.load(folder / GRAPH).graph.initializer
        if tensor.name == "lm_head.weight_Q8G32"
    ]
    assert (folder / "model.ort").read_bytes().count(head.raw_data) == 1
    (tmp_path / "b").mkdir()
    run(ExportInputs(checkpoint=tiny_checkpoint), settings, tmp_path / "b")
    assert list_files(tmp_path / "b" / folder.name) == list_files(folder)


@needs_optimum
def test_schemes_of_one_export_share_one_trace(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(*schemes: Scheme) -> dict[str, Any]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run(ExportInputs(checkpoint=tiny_checkpoint), ExportSettings(schemes=schemes), folder)
        return {path.name: list_files(path) for path in folder.iterdir()}

    children: list[str] = []

    def counted(module: str, arguments: list[str], **options: Any) -> None:
        children.append(module.rpartition(".")[2])
        run_module(module, arguments, **options)

    monkeypatch.setattr(to_standard_onnx, "run_module", counted)
    together = files(Scheme.ONNX_STANDARD_FP16, Scheme.ONNX_STANDARD_INT8, Scheme.ONNX_STANDARD_FP32)
    assert sorted(together) == ["onnx-standard-fp16", "onnx-standard-fp32", "onnx-standard-int8"]
    assert children == ["standard_exporter", "standard_quantizer", "standard_quantizer"]
    assert files(Scheme.ONNX_STANDARD_INT8) == {name: together[name] for name in ["onnx-standard-int8"]}


@needs_optimum
def test_an_architecture_that_optimum_does_not_know_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.Lfm2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    transformers.Lfm2ForCausalLM(config).save_pretrained(checkpoint)
    with pytest.raises(ExportError, match="cannot export a model of type `lfm2`"):
        standard_exporter.main([str(checkpoint), str(tmp_path), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"rope_theta": 1e5, "rope_parameters": {"rope_theta": 1e5}}, {}),
        ({}, {}),
        ({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}, {"rope_theta": 1e5}),
        (
            {"rope_parameters": {"rope_theta": 1e5, "rope_type": "llama3", "factor": 8.0}},
            {"rope_theta": 1e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        ),
    ],
)
def test_the_rotary_embedding_of_transformers_5_is_spelled_for_4(
    config: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert standard_exporter.rope_arguments(config) == wanted


@needs_optimum
def test_a_checkpoint_of_transformers_5_keeps_its_rotary_embedding(
    exported: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    model, folder = exported("llama")
    checkpoint = Path(shutil.copytree(folder.parent / "checkpoint", tmp_path / "checkpoint"))
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = json.loads((checkpoint / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    new = config | {"rope_parameters": rope | {"rope_theta": 50.0}}
    (checkpoint / "config.json").write_text(json.dumps(new))
    (tmp_path / "trace").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's
        standard_exporter.main([str(tmp_path / name) for name in ("checkpoint", "trace", "float32")])
    found, _ = _logits(tmp_path / "float32" / GRAPH, IDS)
    same = _model("Llama", {"rope_theta": 50.0, "rope_scaling": rope})
    assert np.abs(found - _torch_logits(same)).max() < 1e-4  # float32, summed in another order
    assert np.abs(found - _torch_logits(model)).max() > 0.1


def test_a_rotary_embedding_for_each_kind_of_layer_is_refused() -> None:
    with pytest.raises(ExportError, match="has no `rope_theta`"):
        standard_exporter.rope_arguments({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"transformers": "4.57.6"}, "need optimum, which is not installed"),
        (
            {"transformers": "5.24.0", "optimum-onnx": "0.1.0"},
            r"optimum-onnx 0\.1\.0 needs transformers .*, 5\.24\.0 is installed",
        ),
    ],
)
def test_without_a_fitting_optimum_the_schemes_are_refused_before_any_work(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    message: str,
) -> None:
    def requires(name: str) -> list[str]:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return ["transformers<4.58.0,>=4.36"]

    monkeypatch.setattr(optimum_exporter.importlib.metadata, "requires", requires)
    monkeypatch.setattr(optimum_exporter.importlib.metadata, "version", versions.__getitem__)
    settings = ExportSettings(schemes=(Scheme.ONNX_STANDARD_INT8,))
    with pytest.raises(ExportError, match=message) as caught:
        run(ExportInputs(checkpoint=tiny_checkpoint), settings, tmp_path)
    assert "pip install 'ammd[optimum]'" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(ExportError, match="`w` has weights that float16 cannot hold"):
        list(half_weights._halves("w", np.array([[1.0, 7e4]], np.float32)))


def test_weights_beyond_the_ort_format_are_refused() -> None:
    ort_format.check_size(2 * 10**9)
    with pytest.raises(ExportError, match=r"holds less than 2 GiB, the weights are 2\.5 GiB"):
        ort_format.check_size(5 << 29)
