"""Files say what they are and where they come from, and say nothing of when, where and on what they were made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd import __version__
from ammd.export.file_metadata import Provenance, checkpoint_metadata, dataset_names, scheme_metadata
from ammd.export.schemes import Scheme
from ammd.model_origin import License, ModelOrigin

SCHEMES = ("gguf-f16", "gguf-q4_k_m", "onnx-int4", "onnx-fp32")
ORIGIN = {
    "name": "recipe-name",
    "recipe_sha256": "ab" * 32,
    "base_model": {
        "name": "Base",
        "source": "hub:Org/Base",
        "revision": "commit:" + "c" * 40,
        "hub_id": "Org/Base",
        "license": {"id": "apache-2.0"},
    },
    "teacher": {"name": "T", "source": "teacher.gguf", "revision": "sha256:" + "d" * 64},
}
EXPORT = """
import json, sys
from pathlib import Path
from pydantic import TypeAdapter
from ammd.export.settings import ExportSettings
from ammd.export.stage import ExportInputs, run
request = json.loads(sys.argv[1])
inputs = TypeAdapter(ExportInputs).validate_python(request["inputs"])
run(inputs, ExportSettings.model_validate(request["settings"]), Path(request["folder"]))
"""


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same checkpoint exported twice, in processes and folders of their own, one with a name that says much."""
    folders = []
    for seed, place, name in ((1, "one", "checkpoint"), (2, "another one/deeper", "Org-v2-7B-chat")):
        home = tmp_path_factory.mktemp("home") / place
        checkpoint = Path(shutil.copytree(tiny_checkpoint, home / name))
        texts = home / "texts.txt"
        texts.write_text("the cat in a hat. " * 200)
        folder = home / "files"
        folder.mkdir()
        settings = {"schemes": SCHEMES, "imatrix": {"texts": [str(texts)]}}
        inputs = {"checkpoint": str(checkpoint), "provenance": ORIGIN}
        request = {"inputs": inputs, "settings": settings, "folder": str(folder)}
        command = [sys.executable, "-P", "-c", EXPORT, json.dumps(request)]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "TMPDIR": str(home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folders.append(folder)
    return folders[0], folders[1]


def _stated(path: Path) -> dict[str, Any]:
    """Return what a GGUF or an ONNX graph says of itself, without its vocabulary."""
    if path.suffix == ".gguf":
        from gguf import GGUFReader

        fields = GGUFReader(path).fields
        return {name: field.contents() for name, field in fields.items() if "tokens" not in name}
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


@pytest.mark.real
def test_two_exports_give_the_same_bytes(exported: tuple[Path, Path]) -> None:
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in exported
    )
    assert {path.parts[0] for path in first} == {
        "student-f16.gguf",
        "student-q4_k_m.gguf",
        "student-imatrix.gguf",
        "onnx-int4",
        "onnx-fp32",
    }
    assert first.keys() == second.keys()
    assert [str(path) for path in first if first[path] != second[path]] == []
    for path, content in first.items():
        assert str(exported[0].parent).encode() not in content, path


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "scheme", "tool"),
    [
        ("student-f16.gguf", "gguf-f16", "llama-cpp-python"),
        ("student-q4_k_m.gguf", "gguf-q4_k_m", "llama-cpp-python"),
        ("onnx-int4/model.onnx", "onnx-int4", "onnxruntime-genai"),
        ("onnx-fp32/model.onnx", "onnx-fp32", "onnxruntime-genai"),
    ],
)
def test_every_file_says_where_it_comes_from(
    exported: tuple[Path, Path], tiny_checkpoint: Path, name: str, scheme: str, tool: str
) -> None:
    found = _stated(exported[0] / name)
    student = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    expected = {
        "general.name": "recipe-name",
        "general.version": student[:12],
        "general.quantized_by": f"ammd {__version__}",
        "general.license": "apache-2.0",
        "general.base_model.0.name": "Base",
        "general.base_model.0.version": "commit:" + "c" * 40,
        "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://huggingface.co/Org/Base",
        "ammd.version": __version__,
        "ammd.recipe_sha256": "ab" * 32,
        "ammd.student_sha256": student,
        "ammd.teacher_source": "teacher.gguf",
        "ammd.teacher_revision": "sha256:" + "d" * 64,
        "ammd.scheme": scheme,
        "ammd.converter": f"{tool} {version(tool)}",
    }
    is_quantized = scheme not in ("gguf-f16", "onnx-fp32")
    if is_quantized:
        expected["ammd.quantizer"] = f"{tool} {version(tool)}"
    if name.endswith(".gguf"):
        expected["general.base_model.count"] = 1
    else:
        expected["model_license"] = "apache-2.0"
    if name.endswith(".gguf") and is_quantized:
        imatrix = (exported[0] / "student-imatrix.gguf").read_bytes()
        texts = (exported[0].parent / "texts.txt").read_bytes()
        dataset = f"sha256:{hashlib.sha256(texts).hexdigest()}"
        expected["ammd.imatrix_sha256"] = hashlib.sha256(imatrix).hexdigest()
        expected["ammd.imatrix_dataset.0"] = expected["quantize.imatrix.dataset"] = dataset
        expected["quantize.imatrix.file"] = "student-imatrix.gguf"
    assert {key: found.get(key) for key in expected} == expected
    ours = {key for key in found if key.startswith(("ammd.", "general.base_model", "general.license"))}
    assert ours <= expected.keys()


@pytest.mark.real
@pytest.mark.parametrize("name", ["student-q4_k_m.gguf", "onnx-int4"])
def test_engines_open_such_files(exported: tuple[Path, Path], name: str) -> None:
    from ammd.runtime.engine import open_engine

    with open_engine(exported[0] / name, threads=1, context_tokens=16) as engine:
        assert np.isfinite(engine.prefill([1, 20, 30])).all()


def test_a_checkpoint_alone_tells_its_name_hash_and_licence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "my model"))
    found = checkpoint_metadata(checkpoint, None)
    assert found.keys() == {
        "general.name",
        "general.version",
        "general.quantized_by",
        "ammd.version",
        "ammd.student_sha256",
    }
    assert found["general.name"] == "my model"
    (checkpoint / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n# A model\n")
    stated = checkpoint_metadata(checkpoint, None)
    assert (stated["general.license"], stated["general.license.name"]) == ("other", "own")
    for broken in ("---\nlicense: [\n---\n", "no front matter", "---\nlicense: 3\n---\n"):
        (checkpoint / "README.md").write_text(broken)
        assert checkpoint_metadata(checkpoint, None) == found
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    (checkpoint / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert checkpoint_metadata(checkpoint, None)["ammd.student_sha256"] != found["ammd.student_sha256"]


def test_what_a_run_does_not_know_is_left_out(tiny_checkpoint: Path) -> None:
    base = ModelOrigin(name="b", source="b", license=License(id="mit", link="LINK"))
    known = Provenance(name="n", recipe_sha256="0", base_model=base, teacher=None)
    found = checkpoint_metadata(tiny_checkpoint, known)
    assert found["general.license.link"] == "LINK"
    assert [key for key in found if "base_model" in key] == ["general.base_model.0.name"]
    assert not [key for key in found if "teacher" in key]


def test_converter_of_another_tree_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", "/somewhere")
    assert "ammd.converter" not in scheme_metadata(Scheme.GGUF_Q8_0)
    assert "ammd.quantizer" in scheme_metadata(Scheme.GGUF_Q8_0)
    assert "ammd.converter" in scheme_metadata(Scheme.ONNX_INT8)


def test_texts_of_somebody_elses_matrix_lose_their_folders() -> None:
    names = ("/home/me/calibration.txt", "C:\\texts\\wiki.raw", "plain.txt", "sha256:00")
    assert dataset_names(names) == ("calibration.txt", "wiki.raw", "plain.txt", "sha256:00")
