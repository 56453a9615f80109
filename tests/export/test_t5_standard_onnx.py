"""T5 to three ONNX graphs through optimum: what plain onnxruntime computes with them, in float32 and int8."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ammd.artifact import hash_file
from ammd.errors import ExportError
from ammd.export.optimum_exporter import missing_exporter
from ammd.export.seq2seq_exporter import GRAPHS
from ammd.export.settings import OnnxSettings
from ammd.export.standard_graph import WEIGHTS
from ammd.export.to_standard_onnx import quantize_standard_onnx, write_standard_onnx
from ammd.runtime.architecture import read_architecture
from ammd.runtime.engine import START_TOKEN, open_engine
from ammd.runtime.model_file import read_model_file

SOURCE = "translate English to German: How old are you, and why is the hat red?"
TARGET = list(range(5, 85))  # more than the second graph reads at once
needs_optimum = pytest.mark.skipif(
    missing_exporter() is not None, reason="optimum-onnx is not installed here"
)


def read_all(path: Path, *, rounds: bool = False) -> tuple[list[int], np.ndarray]:
    """Return the ids of a source and the logits after each token of a target, read at once, and check one by one.

    A graph that rounds takes one scale for all tokens that it reads at once.
    """
    with open_engine(path, threads=1, context_tokens=192) as engine:
        assert engine.settings[START_TOKEN] == 0
        ids = engine.tokenize(engine.render_chat([{"role": "user", "content": SOURCE}]))
        rows = [chunk.copy() for chunk in engine.logits([*ids, *TARGET], start=len(ids) - 1)]
        single = [engine.prefill(ids).copy(), *(engine.decode(token).copy() for token in TARGET)]
        found = np.concatenate(rows)
        error = 1.0 if rounds else 1e-3
        np.testing.assert_allclose(np.array(single), found, atol=error)  # sums in another order
        return ids, found


@needs_optimum
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_computes_what_the_checkpoint_does(
    build_unigram_t5: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    import onnx

    checkpoint = build_unigram_t5(tmp_path / "checkpoint", tied=tied, layers=3, encoder_layers=2)
    folder = tmp_path / "onnx-standard-fp32"
    write_standard_onnx(checkpoint, folder, metadata={"general.name": "tiny"})
    (ids, expected), (own_ids, found) = read_all(checkpoint), read_all(folder)
    assert own_ids == ids
    np.testing.assert_allclose(found, expected, atol=1e-3)
    stored = sum(entry.stat().st_size for entry in checkpoint.glob("*.safetensors"))
    assert (folder / WEIGHTS).stat().st_size < stored  # each matrix once, for three graphs
    for name in GRAPHS:
        model = onnx.load(folder / name, load_external_data=False)
        assert {entry.key: entry.value for entry in model.metadata_props} == {"general.name": "tiny"}
        onnx.checker.check_model(folder / name)
    facts = read_model_file(folder)
    assert facts.tied_head is tied
    assert read_architecture(folder).kv_values_per_token == 2 * 3 * 6 * 16

    quantize_standard_onnx(folder, tmp_path / "int8", precision="int8", settings=OnnxSettings())
    assert (tmp_path / "int8" / WEIGHTS).stat().st_size < 0.35 * (folder / WEIGHTS).stat().st_size
    _, rounded = read_all(tmp_path / "int8", rounds=True)
    assert (rounded.argmax(-1) == expected.argmax(-1)).mean() > 0.8
    assert json.loads((tmp_path / "int8/config.json").read_text())["is_encoder_decoder"]


@needs_optimum
def test_the_same_checkpoint_gives_the_same_folder(unigram_t5: Path, tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        write_standard_onnx(unigram_t5, tmp_path / name)
        quantize_standard_onnx(
            tmp_path / name, tmp_path / f"{name}-int8", precision="int8", settings=OnnxSettings()
        )
        files = [tmp_path / folder / file for folder in (name, f"{name}-int8") for file in (*GRAPHS, WEIGHTS)]
        hashes.add(tuple(map(hash_file, files)))
    assert len(hashes) == 1


@pytest.mark.skipif(
    importlib.metadata.version("transformers").startswith("4."), reason="this transformers is optimum's"
)
def test_without_optimum_the_scheme_is_refused(unigram_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="optimum") as caught:
        write_standard_onnx(unigram_t5, tmp_path / "onnx")
    assert "pip install 'ammd[optimum]'" in caught.value.hint
