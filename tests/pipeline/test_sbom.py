"""The component list: valid by CycloneDX's own schema, and every part of the release in it."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from ammd.artifact import FileRecord, hash_file
from ammd.pipeline.sbom import write_sbom

APACHE = {"id": "apache-2.0", "name": None, "link": None}
TEACHER = {
    "name": "SmolLM2-135M-Instruct",
    "source": "hub:Org/Smol@main",
    "revision": "commit:0123456789abcdef",
    "hub_id": "Org/Smol",
    "license": APACHE,
}
BASE = {
    "name": "Own base",
    "source": "base",
    "revision": "sha256:" + "a" * 64,
    "hub_id": None,
    "license": {"id": "other", "name": "my-own", "link": "https://a.b/c"},
}
MANIFEST = {
    "name": "tiny",
    "target": "android",
    "run": "tiny/0123",
    "versions": {"python": "3.11.2", "ammd": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.24.0"},
    "origin": {"recipe_sha256": "b" * 64, "student_sha256": "c" * 64, "teacher": TEACHER, "base_model": BASE},
    "data": [
        {"role": "prompts", "name": "prompts.jsonl", "sha256": "d" * 64, "license": None},
        {"role": "heldout", "name": "builtin:quickstart", "sha256": "e" * 64, "license": "apache-2.0"},
    ],
    "models": [
        {
            "name": "gguf-q4_k_m",
            "path": "models/student-q4_k_m.gguf",
            "format": "gguf",
            "loader": "llama.cpp",
            "sha256": "1" * 64,
            "proofs": {"kl_nats": 0.04},
            "quality": {"rouge_l": 0.25, "prompts": 8},
            "bench": {"decode_tokens_per_s": 128.5, "validity": "good"},
        },
        {
            "name": "onnx-int4",
            "path": "models/onnx-int4",
            "format": "onnx-genai",
            "loader": "onnxruntime-genai",
            "sha256": "2" * 64,
            "proofs": None,
            "quality": None,
            "bench": None,
        },
    ],
}
FILES = [
    FileRecord(path="models/onnx-int4/model.onnx", bytes=1, sha256="3" * 64),
    FileRecord(path="models/onnx-int4/model.onnx.data", bytes=1, sha256="4" * 64),
    FileRecord(path="models/student-q4_k_m.gguf", bytes=1, sha256="1" * 64),
]


def _list(tmp_path, manifest=MANIFEST, files=FILES, epoch=86400):
    path = tmp_path / "sbom.json"
    write_sbom(path, manifest, files=files, epoch=epoch)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("origin", [MANIFEST["origin"], {**MANIFEST["origin"], "teacher": BASE}])
def test_the_list_is_valid(tmp_path, origin):
    text = _list(tmp_path, {**MANIFEST, "origin": origin})
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_list_of_a_whole_bundle_is_valid_and_has_its_hashes(bundle):
    text = (bundle / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["bom-ref"]: part for part in json.loads(text)["components"]}
    assert parts["model:gguf-q4_k_m"]["hashes"] == [
        {"alg": "SHA-256", "content": hash_file(bundle / "models/gguf-q4_k_m.gguf")}
    ]
    assert json.loads(text)["metadata"]["timestamp"] == "1970-01-01T00:00:00+00:00"


def test_models_data_and_libraries_are_parts(tmp_path):
    document = json.loads(_list(tmp_path))
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert {ref: part["type"] for ref, part in parts.items()} == {
        "model:gguf-q4_k_m": "machine-learning-model",
        "model:onnx-int4": "machine-learning-model",
        "student": "machine-learning-model",
        "base_model": "machine-learning-model",
        "teacher": "machine-learning-model",
        "data:prompts": "data",
        "data:heldout": "data",
        "library:ammd": "library",
        "library:torch": "library",
        "library:transformers": "library",
        "library:python": "platform",
    }
    assert parts["teacher"]["purl"] == "pkg:huggingface/Org/Smol@0123456789abcdef"
    assert parts["library:torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert parts["teacher"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts["base_model"]["licenses"] == [{"license": {"name": "my-own", "url": "https://a.b/c"}}]
    assert "licenses" not in parts["data:prompts"]
    folder = parts["model:onnx-int4"]["components"]
    assert {part["name"]: part["hashes"][0]["content"] for part in folder} == {
        "models/onnx-int4/model.onnx": "3" * 64,
        "models/onnx-int4/model.onnx.data": "4" * 64,
    }
    facts = {row["name"]: row["value"] for row in parts["model:gguf-q4_k_m"]["properties"]}
    assert facts["ammd:bench:decode_tokens_per_s"] == "128.5"


def test_files_depend_on_the_student_and_it_on_its_sources(tmp_path):
    document = json.loads(_list(tmp_path))
    edges = {row["ref"]: set(row.get("dependsOn", ())) for row in document["dependencies"]}
    assert edges["bundle"] == {"model:gguf-q4_k_m", "model:onnx-int4"}
    assert edges["model:gguf-q4_k_m"] == {"student"}
    assert edges["student"] == {"base_model", "teacher", "data:prompts", "data:heldout"}


def test_the_same_bundle_has_the_same_list(tmp_path):
    first, second = _list(tmp_path), _list(tmp_path)
    assert first == second
    other = [FileRecord(path="models/x", bytes=1, sha256="9" * 64)]
    assert json.loads(_list(tmp_path, files=other))["serialNumber"] != json.loads(first)["serialNumber"]
