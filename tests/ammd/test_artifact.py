from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ammd import artifact
from ammd.artifact import FileRecord, Manifest
from ammd.errors import ArtifactError


def _publish(target: Path, text: str = "one") -> Manifest:
    with artifact.staging_folder(target) as staging:
        (staging / "part").mkdir()
        (staging / "part" / "a.txt").write_text(text)
        (staging / "b.bin").write_bytes(b"\0\1\2")
        files = artifact.list_files(staging)
        return artifact.publish(staging, target, Manifest(stage="test", key="k", files=files))


def test_published_folder_reads_back_equal(tmp_path: Path) -> None:
    manifest = _publish(tmp_path / "stage")
    assert artifact.load_manifest(tmp_path / "stage") == manifest
    assert [record.path for record in manifest.files] == ["b.bin", "part/a.txt"]


def test_publish_leaves_only_the_target(tmp_path: Path) -> None:
    _publish(tmp_path / "stage")
    _publish(tmp_path / "stage", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]
    assert (tmp_path / "stage" / "part" / "a.txt").read_text() == "two"


def test_failed_staging_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), artifact.staging_folder(tmp_path / "stage") as staging:
        (staging / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_no_target_and_its_rest_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    code = (
        "import os, signal, sys; from pathlib import Path; from ammd import artifact\n"
        "with artifact.staging_folder(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert [path.name.startswith(".partial-stage-") for path in tmp_path.iterdir()] == [True]
    artifact.remove_partial(target)
    assert list(tmp_path.iterdir()) == []


def test_remove_partial_spares_other_targets(tmp_path: Path) -> None:
    (tmp_path / ".partial-stage[1]-x").mkdir()
    (tmp_path / ".partial-stage1-x").mkdir()
    artifact.remove_partial(tmp_path / "stage[1]")
    assert [path.name for path in tmp_path.iterdir()] == [".partial-stage1-x"]


def test_publish_restores_the_old_folder_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(tmp_path / "stage", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".partial-") and not self.name.endswith("-old"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match=r"no space left on the disk of `/"):
        _publish(tmp_path / "stage", "new")
    assert artifact.load_manifest(tmp_path / "stage").stage == "test"
    assert (tmp_path / "stage" / "part" / "a.txt").read_text() == "old"


def test_a_kill_between_both_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the second rename: nothing that would undo the first one runs."""
    target, source = tmp_path / "state", tmp_path / "new"
    for folder in (target, source):
        folder.mkdir()
        (folder / "x").write_text(folder.name)
    renames = Path.rename

    def die_in_the_second(path: Path, to: Path) -> Path:
        if path == source:
            raise KeyboardInterrupt  # not an OSError, as a kill is none
        return renames(path, to)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", die_in_the_second)
        artifact.replace(source, target)
    assert not target.exists()
    artifact.remove_partial(target)
    assert (target / "x").read_text() == "state"
    artifact.replace(source, target)
    artifact.remove_partial(target)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (target / "x").read_text() == "new"


def test_replace_puts_a_file_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "out").write_text("old")
    artifact.replace(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "new"


def test_replace_puts_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "out").write_text("old")
    artifact.replace(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_unwritable_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ArtifactError, match="cannot write to"),
        artifact.staging_folder(tmp_path / "file" / "x"),
    ):
        pass


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no manifest at"):
        artifact.load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"schema": "ammd.manifest/99"}', "{}"])
def test_damaged_or_foreign_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"is not JSON|has schema"):
        artifact.load_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("files"),
        lambda document: document.update(surprise=1),
        lambda document: document["files"][0].pop("sha256"),
        lambda document: document["files"][0].update(surprise=1),
        lambda document: document.update(files=3),
        lambda document: document.update(files=[3]),
    ],
)
def test_manifest_with_other_fields_is_refused(tmp_path: Path, change: object) -> None:
    _publish(tmp_path / "stage")
    path = tmp_path / "stage" / "manifest.json"
    document = json.loads(path.read_text())
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="lacks or adds a field"):
        artifact.load_manifest(tmp_path / "stage")


def test_missing_file_is_named(tmp_path: Path) -> None:
    _publish(tmp_path / "stage")
    (tmp_path / "stage" / "b.bin").unlink()
    with pytest.raises(ArtifactError, match=r"b\.bin` is missing"):
        artifact.load_manifest(tmp_path / "stage")


def test_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    _publish(tmp_path / "stage")
    (tmp_path / "stage" / "b.bin").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match=r"b\.bin` has 1 bytes, its manifest says 3") as caught:
        artifact.load_manifest(tmp_path / "stage")
    assert (caught.value.facts["expected"], caught.value.facts["found"]) == (3, 1)


def test_altered_file_of_equal_size_is_named(tmp_path: Path) -> None:
    _publish(tmp_path / "stage")
    (tmp_path / "stage" / "b.bin").write_bytes(b"\0\1\3")
    with pytest.raises(ArtifactError, match=r"b\.bin` was altered"):
        artifact.load_manifest(tmp_path / "stage")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\\b", "a\0b"])
def test_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="unsafe file name"):
        artifact.check_relative(name)


@pytest.mark.parametrize("name", ["a", "a/b.txt", "..a", "a..b/c"])
def test_safe_name_is_given_back(name: str) -> None:
    assert artifact.check_relative(name) == name


def test_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    record = FileRecord(path="../secret", bytes=1, sha256=artifact.hash_file(tmp_path / "secret"))
    (tmp_path / "stage").mkdir()
    with pytest.raises(ArtifactError, match="unsafe file name"):
        artifact.check_files(tmp_path / "stage", (record,))


def test_content_hash_depends_on_names_and_bytes_but_not_on_order() -> None:
    one = FileRecord(path="a", bytes=1, sha256="1" * 64)
    two = FileRecord(path="b", bytes=1, sha256="2" * 64)
    renamed = FileRecord(path="c", bytes=1, sha256="2" * 64)
    assert artifact.hash_records((one, two)) == artifact.hash_records((two, one))
    assert artifact.hash_records((one, two)) != artifact.hash_records((one, renamed))


def test_hash_of_a_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file at"):
        artifact.hash_file(tmp_path / "nothing")


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    artifact.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    with pytest.raises(OSError, match="No space"):
        artifact.write_json(path, {"a": 2})
    assert json.loads(path.read_bytes()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_living_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    with artifact.staging_folder(target) as held:
        left = held.with_name(".partial-stage-ab12cd34")  # of a killed one
        left.mkdir()
        artifact.remove_partial(target)
        assert held.is_dir()
        assert not left.exists()


def test_everything_is_flushed_before_and_after_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, then the folders that name them, then the rename, then the folder that holds it."""
    happened: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def record(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        happened.append(f"{self.name[:8]} -> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "replace", renamed)
    target = tmp_path / "runs" / "stage"
    with artifact.staging_folder(target) as staging:
        (staging / "student").mkdir()
        (staging / "student" / "weights").write_text("w", encoding="utf-8")
        files = artifact.list_files(staging)
        artifact.publish(staging, target, artifact.Manifest(stage="s", key="k", files=files))
        name = staging.name
    renamed_at = happened.index(".partial -> stage")
    assert happened[0] == tmp_path.name  # which now names the new folder `runs`
    assert happened[renamed_at - 1 : renamed_at + 2] == [name, ".partial -> stage", "runs"]
    assert happened.index("weights") < happened.index("student") < renamed_at
    assert "manifest.json" in happened[:renamed_at]
