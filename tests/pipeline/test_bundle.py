"""Bundles: what goes in, what is kept out, the same bytes again, and that every change is noticed."""

import json
import resource
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from ammd.artifact import hash_file
from ammd.errors import ArtifactError, BudgetExceededError, ParityError, RecipeError
from ammd.pipeline.bundle import epoch_of, make_bundle
from ammd.pipeline.bundle_choice import Target, choose
from ammd.pipeline.bundle_verify import verify_bundle
from ammd.zstd import ZstdFile


def _archive(folder):
    return folder.with_name(folder.name + ".tar.zst")


def _manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_phone_gets_its_four_bit_file_and_a_desktop_all(release_run, tmp_path):
    folder = release_run()
    make_bundle(folder, target=Target.IOS, out=tmp_path / "ios")
    assert _files(tmp_path / "ios") == {
        "manifest.json",
        "MODEL_CARD.md",
        "sbom.cdx.json",
        "models/gguf-q4_k_m.gguf",
    }
    make_bundle(folder, target=Target.DESKTOP, out=tmp_path / "desktop")
    models = {name for name in _files(tmp_path / "desktop") if name.startswith("models/")}
    assert models == {f"models/{name}.gguf" for name in ("gguf-f16", "gguf-q8_0", "gguf-q4_k_m")}
    make_bundle(folder, target=Target.IOS, names=["gguf-q8_0"], out=tmp_path / "own")
    assert [row["name"] for row in _manifest(tmp_path / "own")["models"]] == ["gguf-q8_0"]


def test_phones_get_one_file_of_each_kind_that_the_run_has():
    def chosen(*names):
        rows = [{"name": name, "sha256": "1", "parity": {"faults": [], "sha256": "1"}} for name in names]
        summary = {"run": "a/b", "artifacts": rows, "budget": None}
        return [row["name"] for row in choose(summary, Target.ANDROID, ())]

    assert chosen("gguf-f16", "gguf-q4_0", "gguf-q4_k_m", "onnx-int4") == ["gguf-q4_k_m", "onnx-int4"]
    assert chosen("onnx-int4", "gguf-q4_0", "gguf-mixed") == ["onnx-int4", "gguf-mixed"]
    with pytest.raises(RecipeError, match="no file that android is usually given") as caught:
        chosen("gguf-f16", "onnx-fp32")
    assert caught.value.hint == "`--files` takes any of gguf-f16, onnx-fp32"


def test_the_manifest_tells_hash_origin_proof_and_numbers_of_every_file(bundle):
    manifest = _manifest(bundle)
    assert manifest["schema"] == "ammd.bundle/1"
    assert {row["path"]: row["sha256"] for row in manifest["files"]} == {
        name: hash_file(bundle / name) for name in _files(bundle) - {"manifest.json"}
    }
    (model,) = manifest["models"]
    assert (model["path"], model["loader"]) == ("models/gguf-q4_k_m.gguf", "llama.cpp")
    assert model["proofs"] == {"kl_nats": 1e-5, "faults": [], "sha256": model["sha256"]}
    assert model["quality"]["rouge_l"] == 0.4
    assert model["bench"]["decode_tokens_per_s"] == 100.0
    assert [row["stage"] for row in manifest["stages"]] == [
        "prepare",
        "distill",
        "export",
        "verify",
        "evaluate",
        "bench",
    ]
    assert "Licence of the training data: unknown to ammd" in " ".join(manifest["licences"])
    assert manifest["budget"] is None


def test_data_is_named_by_hash(bundle, released):
    rows = {row["role"]: row for row in _manifest(bundle)["data"]}
    assert rows["prompts"] == {
        "role": "prompts",
        "name": "prompts.jsonl",
        "sha256": hash_file(released[0].parent / "prompts.jsonl"),
        "license": None,
    }


def test_the_card_points_at_the_files_beside_it(bundle):
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "](models/gguf-q4_k_m.gguf)" in card
    assert "llama-cli -m models/gguf-q4_k_m.gguf" in card
    assert "export/" not in card
    assert "- Recipe: `manifest.json`" in card


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(release_run, tmp_path, monkeypatch):
    folder = release_run()
    make_bundle(folder, target=Target.DESKTOP, out=tmp_path / "a")
    moved = tmp_path / "elsewhere" / folder.parent.name / folder.name
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    make_bundle(moved, target=Target.DESKTOP, out=tmp_path / "b" / "other")
    assert _archive(tmp_path / "a").read_bytes() == _archive(tmp_path / "b" / "other").read_bytes()
    for name in _files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / "other" / name).read_bytes()


def test_nothing_of_this_machine_is_in_it(bundle, released, words_of_this_machine):
    with ZstdFile(_archive(bundle)) as stream:
        contents = [stream.read()]
    contents += [(bundle / name).read_bytes() for name in sorted(_files(bundle))]
    assert [words_of_this_machine(one, released[0].parent) for one in contents] == [[]] * 5


def test_members_are_sorted_and_say_nothing_of_who_made_them(bundle, monkeypatch):
    with ZstdFile(_archive(bundle)) as stream, tarfile.open(fileobj=stream) as opened:
        members = opened.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert names[0] == "tiny-android"
    facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members if m.isfile()}
    assert facts == {(0, 0, 0, "", "", 0o644)}


def test_the_archive_is_one_that_other_programs_unpack(bundle, tmp_path):
    if not shutil.which("zstd"):
        pytest.skip("no zstd, which tar needs")
    subprocess.run(["tar", "--zstd", "-xf", _archive(bundle), "-C", tmp_path], check=True)
    assert _files(tmp_path / "tiny-android") == _files(bundle)
    assert verify_bundle(tmp_path / "tiny-android")["files"] == 3


def test_time_is_the_measurements_or_what_the_variable_says(monkeypatch):
    summary = {
        "artifacts": [{"bench": {"measured_at": "2026-01-02T00:00:00Z"}}, {"bench": {}}, {"bench": None}]
    }
    assert epoch_of(summary) == 1767312000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert epoch_of(summary) == 86400
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(RecipeError, match="SOURCE_DATE_EPOCH is `yesterday`"):
        epoch_of(summary)


def test_nothing_that_misses_its_budget_enters(release_run, tmp_path):
    folder = release_run("budget.files.gguf-f16.size='0.00001 MB'", "budget.ttft_s=1")
    with pytest.raises(BudgetExceededError, match=r"`gguf-f16`: size is .* at most .* is allowed"):
        make_bundle(folder, target=Target.DESKTOP, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")
    rows = _manifest(tmp_path / "out")["budget"]["rows"]
    assert [(row["artifact"], row["metric"], row["met"]) for row in rows] == [("gguf-q4_k_m", "ttft_s", True)]


def _edit(path, change):
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parity: parity.clear(), "`gguf-q4_k_m` is not proven"),
        (
            lambda parity: parity["gguf-q4_k_m"].update(faults=["its end token"]),
            "fails its proof: its end token",
        ),
        (lambda parity: parity["gguf-q4_k_m"].update(sha256="0" * 64), "is not the file that was proven"),
    ],
)
def test_nothing_unproven_enters(release_run, tmp_path, change, message):
    folder = release_run()
    _edit(folder / "verify/manifest.json", lambda document: change(document["results"]["parity"]))
    with pytest.raises(ParityError, match=message):
        make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_altered_enters(release_run, tmp_path):
    folder = release_run()
    victim = folder / "export/gguf-q4_k_m.gguf"
    victim.write_text(victim.read_text(encoding="utf-8").replace("w", "W"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="was altered"):
        make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")
    shutil.rmtree(folder / "bench")
    with pytest.raises(ArtifactError, match="was altered"):
        make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")


def test_the_licence_of_the_base_model_goes_along(release_run, tmp_path):
    folder = release_run()
    apache = {"id": "apache-2.0", "name": None, "link": None}
    teacher = {"name": "T", "source": "hub:o/t@1", "revision": None, "hub_id": "o/t", "license": apache}
    _edit(folder / "prepare/manifest.json", lambda document: document["results"].update(teacher=teacher))
    make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")
    assert (tmp_path / "out/LICENSE").read_text(encoding="utf-8").split()[:2] == ["Apache", "License"]
    assert "LICENSE" in {row["path"] for row in _manifest(tmp_path / "out")["files"]}
    teacher["license"] = None
    _edit(folder / "prepare/manifest.json", lambda document: document["results"].update(teacher=teacher))
    make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out", force=True)
    assert not (tmp_path / "out/LICENSE").exists()


def test_a_bundle_that_cannot_be_written_leaves_nothing(release_run, tmp_path):
    folder, soft = release_run(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, soft[1]))  # the card is longer
    try:
        with pytest.raises(ArtifactError, match=r"cannot write to `.*`: File too large"):
            make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".partial-*"))


def test_an_unfinished_run_is_refused(release_run, tmp_path):
    folder = release_run()
    shutil.rmtree(folder / "bench")
    with pytest.raises(ArtifactError, match="is not finished: it lacks bench"):
        make_bundle(folder, target=Target.ANDROID, out=tmp_path / "out")


def test_a_bundle_is_replaced_only_by_force_and_other_folders_never(release_run, tmp_path):
    folder, out = release_run(), tmp_path / "out"
    make_bundle(folder, target=Target.ANDROID, out=out)
    with pytest.raises(ArtifactError, match="is there already"):
        make_bundle(folder, target=Target.ANDROID, out=out)
    make_bundle(folder, target=Target.DESKTOP, out=out, force=True)
    assert _manifest(out)["target"] == "desktop"
    assert verify_bundle(_archive(out))["target"] == "desktop"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").touch()
    with pytest.raises(ArtifactError, match="is no bundle, and is not replaced"):
        make_bundle(folder, target=Target.ANDROID, out=mine, force=True)
    assert {path.name for path in tmp_path.iterdir()} >= {"mine", "out", "out.tar.zst"}
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_folder_of_other_files_is_never_taken(release_run, tmp_path, monkeypatch, place):
    folder = release_run()
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for force in (False, True):
        with pytest.raises(ArtifactError, match=r"is there already|is no bundle"):
            make_bundle(folder, target=Target.ANDROID, out=Path(place), force=force)


def test_a_name_of_no_file_is_answered_with_the_nearest(release_run, tmp_path):
    with pytest.raises(RecipeError, match="has no file `gguf-q4_k`, the nearest is `gguf-q4_k_m`"):
        make_bundle(release_run(), target=Target.ANDROID, names=["gguf-q4_k"], out=tmp_path / "out")


def test_bundle_and_verify_from_the_command_line(release_run, tmp_path, ammd):
    folder = release_run()
    code, out, _ = ammd("bundle", folder, "--for", "android", "-o", tmp_path / "b", "--json")
    document = json.loads(out)
    assert (code, document["schema"]) == (0, "ammd.release/1")
    assert document["archive_sha256"] == hash_file(tmp_path / "b.tar.zst")
    for bundle in (tmp_path / "b", tmp_path / "b.tar.zst"):
        code, out, _ = ammd("verify", bundle)
        assert code == 0
        assert "tiny for android: 3 files" in out
        assert "all as they were made, not signed" in out
    assert ammd("verify", tmp_path / "b", "--against", tmp_path)[0] == 2
    assert ammd("verify", folder / "export/gguf-f16.gguf", "--unpack", tmp_path / "x")[0] == 2
    (tmp_path / "b/models/gguf-q4_k_m.gguf").write_text("other", encoding="utf-8")
    code, _, err = ammd("verify", tmp_path / "b")
    assert code == 3
    assert "gguf-q4_k_m.gguf` has 5 bytes, its manifest says" in err
