from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ammd.errors import ArtifactError
from ammd.gguf_reader import open_gguf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("texts", ["", "a", "ä€😀", "x" * 300])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("scores", [0.5, -1.5])
    writer.add_array("flags", [True, False])
    writer.add_uint64("large", 1 << 40)
    writer.add_tensor("weights", np.arange(96, dtype=np.float32).reshape(3, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_fields_and_tensors_are_ggufs_own(path: Path) -> None:
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        found = ours.fields[name]
        assert found.contents() == field.contents()
        assert (found.offset, found.types, found.data) == (field.offset, field.types, field.data)
        assert [part.tolist() for part in found.parts] == [part.tolist() for part in field.parts]
    assert ours.fields["texts"].contents(2) == "ä€😀"
    assert [tensor.name for tensor in ours.tensors] == ["weights"]
    np.testing.assert_array_equal(ours.tensors[0].data, theirs.tensors[0].data)


def test_without_lists_all_else_is_the_same(path: Path) -> None:
    ours, theirs = open_gguf(path, lists=False), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    assert ours.fields["texts"].contents() == ours.fields["numbers"].contents() == []
    assert ours.fields["large"].contents() == 1 << 40
    (tensor,) = ours.tensors
    np.testing.assert_array_equal(tensor.data, theirs.tensors[0].data)


@pytest.mark.parametrize("lists", [True, False])
def test_a_file_that_is_cut_off_anywhere_is_damaged(path: Path, tmp_path: Path, lists: bool) -> None:
    whole, part = path.read_bytes(), tmp_path / "part.gguf"
    for end in range(0, len(whole) - 1, 7):
        part.write_bytes(whole[:end])
        with pytest.raises(ArtifactError, match="is damaged or no GGUF"):
            open_gguf(part, lists=lists)


def test_a_text_longer_than_the_file_is_damaged(path: Path) -> None:
    whole = path.read_bytes()
    place = whole.index(b"x" * 300) - 8
    path.write_bytes(whole[:place] + (1 << 62).to_bytes(8, "little") + whole[place + 8 :])
    with pytest.raises(ArtifactError, match="a text of 4611686018427387904 bytes goes beyond the end"):
        open_gguf(path)
