"""Readers of files from anywhere, on generated ones: an error of ours or a record, and nothing else."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ammd.artifact import MANIFEST_SCHEMA, FileRecord, Manifest, load_manifest, read_manifest
from ammd.conversations import read_conversations
from ammd.distill.prompts import read_examples
from ammd.errors import AmmdError, ArtifactError, DataError
from ammd.gguf_reader import open_gguf
from ammd.pipeline.cache import find_stage
from ammd.runtime.heldout import load_heldout
from ammd.runtime.model_file import read_model_file
from ammd.safetensors_header import read_headers

GENERATED = settings(max_examples=300, deadline=None, derandomize=True, database=None)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3),
    max_leaves=6,
)
numbers = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 12, 255, 1 << 22, 1 << 31, 1 << 32, 1 << 62, (1 << 64) - 1])


def written(name: str, data: bytes, read: Callable[[Path], Any]) -> Any:
    """Return what `read` gives of a file with these bytes; None where it refuses it as it should."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        try:
            return read(path)
        except AmmdError as exc:
            assert str(exc)
            return None
        finally:
            assert [found.name for found in Path(folder).iterdir()] == [name]


def nearly(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields, and some with a value of any kind."""
    wild = {name: one | values for name, one in fields.items()}
    return st.fixed_dictionaries({}, optional=wild) | st.fixed_dictionaries(fields)


records = nearly(
    {
        "path": st.sampled_from(["a", "../a", "/a", "", "a/b", "a\0", "x" * 300, "\ud800"]),
        "bytes": st.integers(0, 3),
        "sha256": st.just("0" * 64),
    }
)
manifests = nearly(
    {
        "schema": st.just(MANIFEST_SCHEMA),
        "stage": st.just("export"),
        "key": st.just("k"),
        "files": st.lists(records, max_size=2),
        "results": st.dictionaries(st.text(max_size=3) | st.just("failed_parts"), values, max_size=2),
    }
)


@GENERATED
@given(manifests | values)
def test_a_manifest_is_one_or_refused(document: Any) -> None:
    manifest = written(
        "manifest.json", json.dumps(document).encode(), lambda path: read_manifest(path.parent)
    )
    if manifest is not None:
        assert isinstance(manifest, Manifest)
        assert all(isinstance(record, FileRecord) for record in manifest.files)
        assert isinstance(manifest.content_hash, str)
        assert isinstance(manifest.results, dict)
    written("manifest.json", json.dumps(document).encode(), lambda path: load_manifest(path.parent))
    written("manifest.json", json.dumps(document).encode(), lambda path: find_stage(path.parent, "k"))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "1" * 5000 + "}", "", "\ufeff{}", "{", "null", "NaN"]
)
def test_json_that_python_itself_gives_up_on_is_refused(text: str) -> None:
    assert written("manifest.json", text.encode(), lambda path: read_manifest(path.parent)) is None
    assert written("x.jsonl", text.encode(), read_conversations) is None
    assert written("x.jsonl", text.encode(), read_examples) in (None, [])
    assert written("x.jsonl", text.encode(), lambda path: load_heldout(path, limit=2)) is None


messages = nearly({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=5)})
prompts = nearly(
    {
        "prompt": st.text(max_size=5) | st.just("\ud800"),
        "response": st.text(max_size=5),
        "messages": st.lists(messages, max_size=3),
        "prompt_ids": st.lists(st.integers(0, 9), max_size=3),
        "response_ids": st.lists(st.integers(0, 9), max_size=3),
        "reference": st.text(max_size=3),
    }
)


@GENERATED
@given(st.lists(prompts | values, max_size=3))
def test_prompts_are_text_that_can_be_encoded_or_refused(rows: list[Any]) -> None:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    for item in written("x.jsonl", data, read_conversations) or ():
        for message in item.messages:
            assert message["content"].encode().decode() == message["content"]
            assert message["role"].encode().decode() == message["role"]
    for held in written("x.jsonl", data, lambda path: load_heldout(path, limit=3)) or ():
        assert all(isinstance(one, int) for one in held.token_ids)
        assert isinstance(held.prompt + held.response, str)
    written("x.jsonl", data, read_examples)


def test_half_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n{"prompt": "\\ud83d"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 holds half of a character"):
        read_conversations(tmp_path / "x.jsonl")


keys = st.sampled_from([b"general.architecture", b"general.alignment", b"llama.context_length", b"\xff", b""])
texts = st.sampled_from([b"llama", b"", b"\xff\xfe", b"x" * 40])


def text_of(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(data) if length is None else length) + data


@st.composite
def gguf_values(draw: st.DrawFn, depth: int = 0) -> bytes:
    """A type and a value of it, mostly."""
    kind = draw(st.sampled_from([0, 4, 5, 6, 7, 8, 8, 9, 9, 10, 12, 13, 99]))
    body = {0: 1, 1: 1, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 12: 8}.get(kind)
    if kind == 8:
        return struct.pack("<I", kind) + text_of(draw(texts), draw(st.none() | numbers))
    if kind == 9:
        inner = draw(gguf_values(depth + 1)) if depth < 3 else struct.pack("<IB", 0, 1)
        return struct.pack("<I", 9) + inner[:4] + struct.pack("<Q", draw(numbers)) + inner[4:]
    return struct.pack("<I", kind) + draw(st.binary(min_size=body or 0, max_size=body or 8))


@st.composite
def ggufs(draw: st.DrawFn) -> bytes:
    """A header with fields and tensors, whose numbers need not be true."""
    fields = draw(st.lists(st.tuples(keys, gguf_values()), max_size=3))
    tensors = draw(st.lists(st.tuples(texts, st.lists(numbers, max_size=5), numbers, numbers), max_size=2))
    counts = [draw(st.just(len(found)) | numbers) for found in (tensors, fields)]
    version = draw(st.sampled_from([3, 3, 3, 2, 1, 0, 1 << 24]))
    data = b"GGUF" + struct.pack("<IQQ", version, *counts)
    data += b"".join(text_of(key) + value for key, value in fields)
    for name, shape, kind, offset in tensors:
        dims = draw(st.just(len(shape)) | st.sampled_from([0, 5, 1 << 31]))
        data += text_of(name) + struct.pack("<I", dims) + b"".join(struct.pack("<Q", size) for size in shape)
        data += struct.pack("<IQ", kind & 0xFFFFFFFF, offset)
    return data + draw(st.binary(max_size=64)) + bytes(draw(st.sampled_from([0, 32, 256])))


@GENERATED
@given(ggufs())
def test_a_gguf_header_is_read_or_refused(data: bytes) -> None:
    reader = written("x.gguf", data, open_gguf)
    if reader is not None:
        assert sum(int(tensor.n_bytes) for tensor in reader.tensors) <= len(data)
    written("x.gguf", data, read_model_file)


def test_a_list_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as stream:
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text_of(b"k") + struct.pack("<IIQ", 9, 0, 1 << 30)
        stream.write(head)
        stream.truncate(len(head) + (1 << 30))  # all there, and sparse
    with pytest.raises(ArtifactError, match=r"a list claims 1073741824 items"):
        open_gguf(path)


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + text_of(b"k")
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 5000
    )
    with pytest.raises(ArtifactError, match="is damaged or no GGUF"):
        open_gguf(path)


entries = nearly(
    {
        "dtype": st.sampled_from(["F32", "BF16"]),
        "shape": st.lists(st.integers(0, 3), max_size=2),
        "data_offsets": st.lists(st.integers(0, 9), min_size=2, max_size=2),
    }
)


@GENERATED
@given(
    st.dictionaries(st.sampled_from(["w", "__metadata__"]), entries | values) | values, numbers | st.none()
)
def test_a_safetensors_header_is_read_or_refused(document: Any, length: int | None) -> None:
    head = json.dumps(document).encode()
    data = struct.pack("<Q", len(head) if length is None else length) + head + bytes(9)
    written("x.safetensors", data, lambda path: read_headers(path.parent))
