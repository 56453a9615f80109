"""A bundle that differs in anything from what was made is refused, as a folder and as an archive."""

import json
import os
import shutil
import tarfile

import pytest

from ammd.errors import ArtifactError, RecipeError
from ammd.pipeline.bundle_archive import write_archive
from ammd.pipeline.bundle_verify import verify_bundle
from ammd.zstd import ZstdFile


def _lose(folder):
    (folder / "models/gguf-q4_k_m.gguf").unlink()


def _add(folder):
    (folder / "models/more.gguf").touch()


def _alter(folder):
    path = folder / "models/gguf-q4_k_m.gguf"
    path.write_bytes(path.read_bytes()[::-1])


def _alter_card(folder):
    (folder / "MODEL_CARD.md").write_text("# Mine", encoding="utf-8")


def _change_manifest(**change):
    def edit(folder):
        path = folder / "manifest.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(document | change), encoding="utf-8")

    return edit


def _no_manifest(folder):
    (folder / "manifest.json").unlink()


def _half_a_manifest(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-100])


RECORD = {"path": "MODEL_CARD.md", "bytes": 1, "sha256": "0" * 64}
CHANGES = [
    (_lose, "is missing"),
    (_add, r"`models/more.gguf` in .* is in no manifest"),
    (_alter, "was altered"),
    (_alter_card, "its manifest says"),
    (_no_manifest, r"has no manifest\.json"),
    (_half_a_manifest, "is no manifest of a bundle"),
    (_change_manifest(schema="ammd.bundle/2"), "is no manifest of a bundle: schema"),
    (_change_manifest(files=7), "is no manifest of a bundle: files"),
    (_change_manifest(files=[{**RECORD, "path": "../../etc/passwd"}]), "unsafe file name"),
    (_change_manifest(files=[RECORD, RECORD]), r"`manifest\.json` holds `MODEL_CARD\.md` twice"),
    (_change_manifest(files=[{**RECORD, "bytes": "1"}]), r"files\.0\.bytes"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_every_change_of_a_folder_is_noticed(bundle, change, message):
    assert verify_bundle(bundle)["files"] == 3
    change(bundle)
    with pytest.raises(ArtifactError, match=message):
        verify_bundle(bundle)


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_every_change_of_an_archive_is_noticed(bundle, tmp_path, change, message):
    change(bundle)
    archive = tmp_path / "changed.tar.zst"
    write_archive(bundle, archive, top="tiny-android", epoch=0)
    with pytest.raises(ArtifactError, match=message):
        verify_bundle(archive, unpack_to=tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    assert not list(tmp_path.glob(".partial-*"))


def test_a_link_in_a_folder_is_refused(bundle, tmp_path):
    path = bundle / "models/gguf-q4_k_m.gguf"
    path.rename(tmp_path / "moved.gguf")
    path.symlink_to(tmp_path / "moved.gguf")
    with pytest.raises(ArtifactError, match="is a link or a device"):
        verify_bundle(bundle)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match="is a link or a device"):
        verify_bundle(bundle)


def test_an_archive_is_unpacked_once_it_is_right(bundle, tmp_path):
    archive = bundle.with_name("tiny.tar.zst")
    found = verify_bundle(archive, unpack_to=tmp_path / "unpacked")
    assert (found["path"], found["signature"]) == (str(tmp_path / "unpacked"), "none")
    assert verify_bundle(tmp_path / "unpacked")["bytes"] == found["bytes"]
    with pytest.raises(ArtifactError, match="is there already"):
        verify_bundle(archive, unpack_to=tmp_path / "unpacked")


def test_a_folder_is_not_unpacked(bundle, tmp_path):
    with pytest.raises(RecipeError, match="is no archive"):
        verify_bundle(bundle, unpack_to=tmp_path / "unpacked")


def test_an_archive_of_two_folders_is_no_bundle(tmp_path):
    archive = tmp_path / "x.tar.zst"
    with ZstdFile(archive, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as opened:
        for name in ("a/manifest.json", "b/manifest.json"):
            opened.addfile(tarfile.TarInfo(name))
    with pytest.raises(ArtifactError, match=r"does not hold one folder: `b/manifest.json`"):
        verify_bundle(archive)


def test_a_bomb_is_stopped_at_its_stated_size(tmp_path, monkeypatch):
    monkeypatch.setattr("ammd.pipeline.bundle_archive._UNPACKED_AT_LEAST", 1 << 20)
    archive = tmp_path / "x.tar.zst"
    member = tarfile.TarInfo("a/models/zeros.gguf")
    member.size = 64 << 20
    with (
        ZstdFile(archive, "wb") as stream,
        tarfile.open(fileobj=stream, mode="w") as opened,
        (tmp_path / "zeros").open("w+b") as zeros,
    ):
        zeros.truncate(member.size)
        opened.addfile(member, zeros)
    assert archive.stat().st_size < 1 << 16
    with pytest.raises(ArtifactError, match="larger than the 1048576 bytes that may still be unpacked"):
        verify_bundle(archive, unpack_to=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar.zst", "zeros"}


def test_what_is_not_there_is_no_bundle(tmp_path):
    for path in (tmp_path / "none", tmp_path / "none.tar.zst"):
        with pytest.raises(ArtifactError, match="no bundle at"):
            verify_bundle(path)
    shutil.copy(__file__, tmp_path / "text.tar.zst")
    with pytest.raises(ArtifactError, match="is damaged"):
        verify_bundle(tmp_path / "text.tar.zst")
