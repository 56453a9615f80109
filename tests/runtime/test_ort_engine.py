from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.export import to_onnx
from ammd.export.to_onnx import write_onnx
from ammd.runtime import ort_cache, ort_engine
from ammd.runtime.genai_engine import GenaiEngine
from ammd.runtime.ort_cache import SharedCache
from ammd.runtime.ort_engine import OrtEngine
from ammd.runtime.torch_engine import TorchEngine

IDS = [int(token) for token in np.random.default_rng(1).integers(3, 260, size=40)]
CHAT = [{"role": "user", "content": "Größe 中文 😀?"}]


@pytest.fixture(scope="module")
def looking(build_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose logits depend on what is far back: its attention is sharp."""
    return build_checkpoint(tmp_path_factory.mktemp("looking") / "checkpoint", initializer_range=0.2)


@pytest.fixture(scope="module")
def int4(looking: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4") / "onnx-int4"
    write_onnx(looking, folder)
    return folder


@pytest.fixture(scope="module")
def standard(looking: Path, make_standard_onnx: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_standard_onnx(looking, tmp_path_factory.mktemp("standard") / "onnx")


@pytest.fixture(scope="module")
def tolerance(folder: Path) -> float:
    """Of the same tokens in products of other shapes; the logits are of order 1 to 10.

    int4's products round activations to int8: where one flips, all later positions move.
    """
    return 0.2 if folder.name == "onnx-int4" else 1e-3


@pytest.fixture(scope="module", params=["int4", "standard"])
def folder(request: pytest.FixtureRequest) -> Path:
    value: Path = request.getfixturevalue(request.param)
    return value


def rows(engine: Any, token_ids: list[int], *, prompt: int) -> np.ndarray:
    """Return the logits after the prompt and after each token that is decoded behind it."""
    found = [engine.prefill(token_ids[:prompt]).copy()]
    return np.stack(found + [engine.decode(token).copy() for token in token_ids[prompt:]])


def test_fused_int4_gives_the_numbers_of_genai(int4: Path) -> None:
    with (
        OrtEngine(int4, threads=1, context_tokens=64) as ours,
        GenaiEngine(int4, threads=1, context_tokens=64) as genai,
    ):
        # The same kernels on the same numbers in the same order.
        np.testing.assert_array_equal(rows(ours, IDS, prompt=9), rows(genai, IDS, prompt=9))
        whole = [np.concatenate([chunk.copy() for chunk in one.logits(IDS)]) for one in (ours, genai)]
        np.testing.assert_array_equal(*whole)
        assert ours.end_token_ids == genai.end_token_ids
        assert ours.bos_token_id == genai.bos_token_id
        assert ours.render_chat(CHAT) == genai.render_chat(CHAT)
        assert ours.tokenize(ours.render_chat(CHAT)) == genai.tokenize(genai.render_chat(CHAT))


def test_tokens_get_their_own_places_up_to_the_end_of_the_context_and_in_a_new_sequence(
    int4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_cache, "_PLACES_AHEAD", 7)
    with (
        OrtEngine(int4, threads=1, context_tokens=len(IDS)) as ours,
        GenaiEngine(int4, threads=1, context_tokens=len(IDS)) as genai,
    ):
        assert {value.data_ptr() % 64 for value in ours._open_cache.buffers.values()} == {0}
        for prompt in (9, 30, 3):
            np.testing.assert_array_equal(rows(ours, IDS, prompt=prompt), rows(genai, IDS, prompt=prompt))


@pytest.mark.parametrize("positions", [True, False])
def test_standard_graph_gives_the_numbers_of_transformers(
    looking: Path, make_standard_onnx: Callable[..., Path], tmp_path: Path, positions: bool
) -> None:
    path = make_standard_onnx(looking, tmp_path / "onnx", positions=positions)
    exact = TorchEngine(looking, threads=1, context_tokens=64)
    with OrtEngine(path, threads=1, context_tokens=64) as engine:
        # float32 summed in another order; the logits are of order 1 to 10
        np.testing.assert_allclose(rows(engine, IDS, prompt=9), rows(exact, IDS, prompt=9), atol=1e-3)


def test_half_precision_is_read_as_float32(
    looking: Path, make_standard_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_standard_onnx(looking, tmp_path / "onnx", half=True)
    exact = TorchEngine(looking, threads=1, context_tokens=64)
    with OrtEngine(path, threads=1, context_tokens=64) as engine:
        found = rows(engine, IDS, prompt=9)
        assert found.dtype == next(engine.logits(IDS)).dtype == np.float32
        assert engine.settings["kv_cache_type"] == "f16"
    # float16 has 11 bits: thousandths of numbers up to 10, through a cache that is rounded too
    np.testing.assert_allclose(found, rows(exact, IDS, prompt=9), atol=0.1)


def test_prompt_in_chunks_equals_the_whole(
    folder: Path, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OrtEngine(folder, threads=1, context_tokens=64) as engine:
        whole = engine.prefill(IDS).copy()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_prefill_tokens", 7)
            np.testing.assert_allclose(engine.prefill(IDS), whole, atol=tolerance)
        decoded = engine.decode(5).copy()
        np.testing.assert_allclose(decoded, engine.prefill([*IDS, 5]), atol=tolerance)


def test_chunks_of_a_prompt_are_bounded_by_the_logits_they_make(
    standard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_engine, "_PREFILL_LOGITS_BYTES", 10 * 268 * 4)
    with OrtEngine(standard, threads=1, context_tokens=64) as engine:
        assert engine.settings["prefill_chunk_tokens"] == 10
        seen: list[int] = []
        extend = engine._open_cache.extend
        monkeypatch.setattr(
            engine._open_cache,
            "extend",
            lambda ids, start: seen.append(ids.shape[1]) or extend(ids, start),
        )
        engine.prefill(IDS[:23])
        assert seen == [10, 10, 3]


def test_decoding_equals_a_full_pass_and_leaves_nothing_behind(folder: Path, tolerance: float) -> None:
    with OrtEngine(folder, threads=1, context_tokens=64) as engine:
        clean = rows(engine, IDS, prompt=1)
        whole = np.concatenate([chunk.copy() for chunk in engine.logits(IDS)])
        np.testing.assert_allclose(clean, whole, atol=tolerance)
        assert next(engine.logits(IDS, start=38)).shape == (2, 268)
        np.testing.assert_array_equal(rows(engine, IDS, prompt=1), clean)


def test_fused_cache_is_one_buffer_that_stays(int4: Path) -> None:
    with OrtEngine(int4, threads=1, context_tokens=50) as engine:
        cache = engine._cache
        assert isinstance(cache, SharedCache)
        assert engine.settings["kv_cache_in_place"] is True
        before = {name: (value.data_ptr(), value.shape()) for name, value in cache.buffers.items()}
        assert {tuple(shape) for _, shape in before.values()} == {(1, 2, 50, 16)}
        rows(engine, IDS, prompt=9)
        # What was read lies in it, and behind that nothing: no step has copied the cache elsewhere.
        for name, value in cache.buffers.items():
            assert (value.data_ptr(), value.shape()) == before[name]
            filled = np.abs(value.numpy()).max(axis=(0, 1, 3)) > 0
            assert filled.tolist() == [True] * 40 + [False] * 10
        written = {value.data_ptr() for value in cache._one.get_outputs()}
        assert written > {address for address, _ in before.values()}


def test_standard_cache_is_handed_over(standard: Path) -> None:
    with OrtEngine(standard, threads=1, context_tokens=64) as engine:
        assert engine.settings["kv_cache_in_place"] is False
        engine.prefill(IDS[:5])
        fed = engine._cache._fed  # type: ignore[union-attr]
        assert {tuple(value.shape()) for name, value in fed.items() if "past" in name} == {(1, 2, 5, 16)}


@pytest.mark.parametrize("declared", [True, False])
def test_graph_that_keeps_the_last_position_is_asked_token_by_token(
    standard: Path, looking: Path, make_standard_onnx: Callable[..., Path], tmp_path: Path, declared: bool
) -> None:
    def prune(model: Any) -> None:
        from onnx import helper, numpy_helper

        cast = next(node for node in model.graph.node if node.output[0] == "logits")
        last = numpy_helper.from_array(np.array([-1]), "last")
        model.graph.initializer.append(last)
        model.graph.node.append(helper.make_node("Gather", [cast.input[0], "last"], ["row"], axis=1))
        cast.input[0] = "row"
        model.graph.node.remove(cast)
        model.graph.node.append(cast)
        if declared:
            model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1

    path = make_standard_onnx(looking, tmp_path / "onnx", change=prune)
    with (
        OrtEngine(path, threads=1, context_tokens=64) as pruned,
        OrtEngine(standard, threads=1, context_tokens=64) as whole,
    ):
        chunks = [chunk.copy() for chunk in pruned.logits(IDS, start=30)]
        assert [len(chunk) for chunk in chunks] == [1] * 10
        expected = np.concatenate([chunk.copy() for chunk in whole.logits(IDS, start=30)])
        np.testing.assert_allclose(np.concatenate(chunks), expected, atol=1e-3)
        np.testing.assert_allclose(pruned.prefill(IDS), expected[-1], atol=1e-3)


def test_library_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with OrtEngine(folder, threads=1, context_tokens=16) as engine:
        engine.prefill([5, 6])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_end_tokens_are_those_of_the_generation_configuration(standard: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(standard, tmp_path / "onnx"))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    with OrtEngine(path, threads=1, context_tokens=16) as engine:
        assert engine.end_token_ids == {0, 7, 2}  # and the tokenizer's own
        assert engine.bos_token_id == 1
    (path / "generation_config.json").unlink()
    with OrtEngine(path, threads=1, context_tokens=16) as engine:
        assert engine.end_token_ids == {2}


def test_random_tokens_stream_as_they_are_detokenized(standard: Path) -> None:
    with OrtEngine(standard, threads=1, context_tokens=16) as engine:
        stream = engine.text_stream()
        text = "".join(stream(token) for token in [*IDS, *engine.tokenize("中"), 267])
        assert text == engine.detokenize([*IDS, *engine.tokenize("中")])


def test_context_of_a_fused_graph_is_not_exceeded(int4: Path) -> None:
    with pytest.raises(EngineError, match=r"a context of 513 tokens is more than the 512 that `.*` was made"):
        OrtEngine(int4, threads=1, context_tokens=513)


def test_context_is_checked_before_the_graph_is_run(folder: Path) -> None:
    with OrtEngine(folder, threads=1, context_tokens=8) as engine:
        engine.prefill(IDS[:8])
        with pytest.raises(EngineError, match="context of 8 tokens is full"):
            engine.decode(5)
        with pytest.raises(EngineError, match="9 tokens do not fit into a context of 8"):
            list(engine.logits(IDS[:9]))


def test_tokens_outside_the_vocabulary_are_refused(folder: Path) -> None:
    """The quantized lookup does not look at its bounds."""
    with OrtEngine(folder, threads=1, context_tokens=8) as engine:
        for token in (268, -1):
            with pytest.raises(EngineError, match=rf"token {token} is outside the vocabulary of 268"):
                engine.prefill([5, token])
        engine.prefill([5])
        with pytest.raises(EngineError, match="token 268 is outside"):
            engine.decode(268)


def test_failure_of_a_step_is_one_line(
    looking: Path, make_standard_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    def cut_table(model: Any) -> None:
        from onnx import numpy_helper

        table = next(tensor for tensor in model.graph.initializer if "embed" in tensor.name)
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:100], table.name))

    path = make_standard_onnx(looking, tmp_path / "onnx", tied=False, change=cut_table)
    with OrtEngine(path, threads=1, context_tokens=8) as engine:
        with pytest.raises(
            EngineError, match=r"^onnxruntime failed: \[ONNXRuntimeError\][^\n]*bounds[^\n]*$"
        ):
            engine.prefill([5, 200])
        engine.prefill([5])
        with pytest.raises(EngineError, match=r"^onnxruntime failed: "):
            engine.decode(200)


@pytest.mark.skipif(
    to_onnx._release("onnxruntime-genai") < to_onnx._FIRST_WITH_NEW_OPTIONS,
    reason="older builders write the size of heads into the graph, where it counts",
)
def test_configuration_of_another_fused_model_is_refused(int4: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(int4, tmp_path / "onnx"))
    config = json.loads((path / "genai_config.json").read_text())
    config["model"]["decoder"]["head_size"] = 8
    (path / "genai_config.json").write_text(json.dumps(config))
    with OrtEngine(path, threads=1, context_tokens=8) as engine, pytest.raises(EngineError, match="failed: "):
        engine.prefill([5])


def _damaged(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08nothing")


def _no_weights(folder: Path) -> None:
    (folder / "model.onnx_data").unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_vocabulary(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _other_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))


def _several_graphs(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder / "a.onnx")
    (folder / "model.onnx").rename(folder / "b.onnx")


@pytest.mark.parametrize(
    ("spoil", "kind", "caught"),
    [
        (_damaged, EngineError, r"onnxruntime cannot load `.*model\.onnx`: .*INVALID_PROTOBUF"),
        (_no_weights, EngineError, r"onnxruntime cannot load `.*model\.onnx`: .*model\.onnx_data"),
        (_no_tokenizer, ArtifactError, r"has no tokenizer\.json"),
        (_damaged_tokenizer, ArtifactError, r"`.*tokenizer\.json` is no tokenizer: "),
        (_no_configuration, ArtifactError, r"cannot read `.*config\.json`"),
        (_no_vocabulary, ArtifactError, r"names no decoder, vocabulary or context: 'vocab_size'"),
        (_other_vocabulary, EngineError, r"gives logits of 268 tokens, its configuration names 300"),
        (
            _several_graphs,
            ArtifactError,
            r"several graphs and none is named model\.onnx: `a\.onnx`, `b\.onnx`",
        ),
    ],
)
def test_a_spoiled_folder_is_refused_in_one_line(
    standard: Path, tmp_path: Path, spoil: Callable[[Path], None], kind: type[Exception], caught: str
) -> None:
    path = Path(shutil.copytree(standard, tmp_path / "onnx"))
    spoil(path)
    with pytest.raises(kind, match=caught) as error:
        OrtEngine(path, threads=1, context_tokens=16)
    assert "\n" not in str(error.value)


def test_folder_without_a_template_cannot_chat(standard: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(standard, tmp_path / "onnx"))
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").unlink()
    config = json.loads((path / "tokenizer_config.json").read_text())
    bare = {name: value for name, value in config.items() if name != "chat_template"}
    (path / "tokenizer_config.json").write_text(json.dumps(bare))
    with (
        OrtEngine(path, threads=1, context_tokens=16) as engine,
        pytest.raises(EngineError, match="stores no chat template"),
    ):
        engine.render_chat(CHAT)
    # Older writers keep it inside the configuration, some several by name.
    listed = [{"name": "tools", "template": ""}, {"name": "default", "template": template}]
    for stored in (template, listed):
        (path / "tokenizer_config.json").write_text(json.dumps(bare | {"chat_template": stored}))
        with OrtEngine(path, threads=1, context_tokens=16) as engine:
            assert engine.render_chat(CHAT).startswith("<|im_start|>user\nGröße")


def _extra_input(model: Any) -> None:
    from onnx import TensorProto, helper

    model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["b", "t"]))


def _integer_cache(model: Any) -> None:
    from onnx import TensorProto, helper

    entry = next(entry for entry in model.graph.input if entry.name == "past_key_values.1.key")
    entry.type.tensor_type.elem_type = TensorProto.INT8
    concat = next(node for node in model.graph.node if entry.name in node.input)
    concat.input[list(concat.input).index(entry.name)] = "converted"
    model.graph.node.insert(
        0, helper.make_node("Cast", [entry.name], ["converted"], to=int(TensorProto.FLOAT))
    )


def _no_present(model: Any) -> None:
    model.graph.output.remove(next(entry for entry in model.graph.output if entry.name == "present.2.value"))


def _flat_logits(model: Any) -> None:
    from onnx import helper, numpy_helper

    cast = next(node for node in model.graph.node if node.output[0] == "logits")
    cast.output[0] = "all_logits"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 268]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", ["all_logits", "flat"], ["logits"]))
    del model.graph.output[0].type.tensor_type.shape.dim[0]


def _no_cache(model: Any) -> None:
    from onnx import numpy_helper

    for entry in [entry for entry in model.graph.input if entry.name.startswith("past")]:
        model.graph.input.remove(entry)
        model.graph.initializer.append(
            numpy_helper.from_array(np.zeros((1, 2, 0, 16), np.float32), entry.name)
        )


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        (_extra_input, r"has inputs that are not known here: token_type_ids"),
        (_integer_cache, r"has `past_key_values\.1\.key` as tensor\(int8\); known are tensor\(float\)"),
        (_no_present, r"has no `present\.2\.value`"),
        (_flat_logits, r"has `logits` with 2 dimensions instead of 3"),
        (_no_cache, r"takes no past_key_values"),
    ],
)
def test_a_graph_of_another_kind_is_refused_by_name(
    looking: Path,
    make_standard_onnx: Callable[..., Path],
    tmp_path: Path,
    change: Callable[[Any], None],
    caught: str,
) -> None:
    path = make_standard_onnx(looking, tmp_path / "onnx", change=change)
    with pytest.raises(EngineError, match=caught):
        OrtEngine(path, threads=1, context_tokens=16)


def test_logits_of_another_vocabulary_are_refused(standard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OrtEngine(standard, threads=1, context_tokens=16) as engine:
        given = next(engine.logits(IDS[:3])).shape[-1]
        monkeypatch.setattr(engine, "vocab_size", given + 1)
        with pytest.raises(EngineError, match=f"gives logits of {given} tokens, .* names {given + 1}"):
            engine.prefill(IDS[:3])
