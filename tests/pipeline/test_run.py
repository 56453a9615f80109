"""The path on stand-in stages: what is made, what is found again, what a change makes anew."""

import json

import pytest

from ammd.artifact import Manifest, read_manifest
from ammd.errors import ArtifactError, ExportError, ParityError
from ammd.pipeline.costs import total_costs
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe
from ammd.pipeline.watched_files import WatchedFiles

ALL = ["prepare", "distill", "export", "verify", "evaluate", "bench"]


@pytest.fixture
def run(tmp_path, recipe_path, stand_in):
    """Run the recipe with overrides and return the summary."""

    def run(*overrides, until="report"):
        recipe = load_recipe(recipe_path, overrides=overrides)
        return run_recipe(recipe, runs_dir=tmp_path / "runs", until=until, stages=stand_in.stages)

    return run


def test_run_makes_every_stage_in_order_and_its_summary(run, stand_in):
    summary = run()
    assert stand_in.ran() == ALL
    assert summary["schema"] == "ammd.run/1"
    assert [row["stage"] for row in summary["stages"]] == ALL
    assert not any(row["cached"] for row in summary["stages"])
    assert all(row["seconds"] > 0 and row["peak_rss_bytes"] > 1 << 20 for row in summary["stages"])
    assert [row["name"] for row in summary["models"]] == [
        "teacher",
        "student-pruned",
        "student-warm",
        "student",
    ]
    assert [row["name"] for row in summary["artifacts"]] == ["gguf-f16", "gguf-q8_0"]
    artifact = summary["artifacts"][0]
    assert set(artifact) >= {"name", "format", "path", "bytes", "sha256", "parity", "quality", "bench"}
    assert artifact["parity"]["kl_nats"] == 1e-5


def test_run_writes_the_summary_that_it_returns(run, tmp_path):
    summary = run()
    stored = json.loads((tmp_path / "runs" / summary["run"] / "summary.json").read_text(encoding="utf-8"))
    assert stored == summary


def test_costs_are_those_of_all_stages(run, tmp_path):
    costs = run()["costs"]
    folder = next((tmp_path / "runs" / "tiny").iterdir())
    manifests = [read_manifest(folder / name) for name in ALL]
    assert costs["cpu_seconds"] == pytest.approx(
        sum(manifest.cpu_seconds for manifest in manifests), abs=0.01
    )
    # Each stage starts an interpreter, which takes processor time, and waits for nothing long.
    assert all(0.01 < manifest.cpu_seconds < 10 * manifest.seconds for manifest in manifests)
    assert costs["peak_rss_bytes"] == max(manifest.peak_rss_bytes for manifest in manifests)
    assert (costs["generated_tokens"], costs["trained_tokens"]) == (30 + 12, 40)


def test_a_cost_that_one_stage_does_not_tell_is_unknown():
    known = Manifest(
        stage="prepare", key="", files=(), seconds=1.0, cpu_seconds=2.0, results={"generated_tokens": 7}
    )
    old = Manifest(stage="distill", key="", files=(), seconds=3.0, joules=5.0)
    costs = total_costs([known, old])
    assert costs["seconds"] == 4.0
    assert [name for name, value in costs.items() if value is None] == [
        "cpu_seconds",
        "generated_tokens",
        "trained_tokens",
        "joules",
    ]
    assert total_costs([known])["cpu_seconds"] == 2.0


def test_second_run_does_no_stage_again(run, stand_in):
    first = run()
    stand_in.ran()
    second = run()
    assert stand_in.ran() == []
    assert all(row["cached"] for row in second["stages"])
    assert second["artifacts"] == first["artifacts"]


def test_until_distill_stops_there_and_run_goes_on(run, stand_in):
    summary = run(until="distill")
    assert stand_in.ran() == ["prepare", "distill"]
    assert summary["artifacts"] == []
    run()
    assert stand_in.ran() == ["export", "verify", "evaluate", "bench"]


def test_late_setting_reuses_early_stages_of_the_sibling_run_without_copying(run, stand_in, tmp_path):
    first = run()
    stand_in.ran()
    second = run("bench.repetitions=2")
    assert stand_in.ran() == ["bench"]
    assert first["run"] != second["run"]
    paths = [
        tmp_path / "runs" / summary["run"] / "distill/student/model.safetensors"
        for summary in (first, second)
    ]
    assert paths[0].samefile(paths[1])


def test_early_setting_makes_what_depends_on_it(run, stand_in):
    run()
    stand_in.ran()
    run("export.schemes=['gguf-f16']")
    assert stand_in.ran() == ["export", "verify", "evaluate", "bench"]


def test_changed_data_file_makes_every_stage_anew(run, stand_in, recipe_path):
    run()
    stand_in.ran()
    with (recipe_path.parent / "prompts.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "d"}\n')
    run()
    # The stand-in's student is the same for any prompts, but its files name the recipe; theirs are the same again.
    assert stand_in.ran() == ["prepare", "distill", "export"]


def test_moved_recipe_with_the_same_data_finds_its_stages(run, stand_in, recipe_path, tmp_path):
    run()
    stand_in.ran()
    moved = recipe_path.parent.rename(tmp_path / "elsewhere")
    recipe = load_recipe(moved / recipe_path.name)
    run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    assert stand_in.ran() == []


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "manifest"])
def test_damaged_stage_is_noticed_said_and_made_anew(run, stand_in, tmp_path, caplog, damage):
    folder = tmp_path / "runs" / run()["run"] / "export"
    stand_in.ran()
    victim = folder / "gguf-q8_0.gguf"
    if damage == "altered":
        victim.write_text(victim.read_text(encoding="utf-8").replace("w", "W"), encoding="utf-8")
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "missing":
        victim.unlink()
    else:
        (folder / "manifest.json").write_text("{", encoding="utf-8")
    summary = run()
    assert stand_in.ran() == ["export"]
    assert "export: making it anew, because" in caplog.text
    assert victim.read_text(encoding="utf-8") == "weights as gguf-q8_0"
    assert [row["cached"] for row in summary["stages"]] == [True, True, False, True, True, True]


def test_damaged_sibling_is_not_taken(run, stand_in, tmp_path, caplog):
    folder = tmp_path / "runs" / run()["run"]
    (folder / "prepare" / "train.jsonl").write_text("?", encoding="utf-8")
    stand_in.ran()
    run("bench.repetitions=2")
    assert stand_in.ran()[0] == "prepare"
    assert "prepare: not taken from" in caplog.text


def test_code_version_makes_a_stage_anew(run, stand_in, monkeypatch):
    import dataclasses

    run()
    stand_in.ran()
    newer = dataclasses.replace(stand_in.stages["verify"], code_version=99)
    monkeypatch.setitem(stand_in.stages, "verify", newer)
    run()
    assert stand_in.ran() == ["verify"]


def test_error_of_a_stage_arrives_whole_and_earlier_stages_stay(run, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "verify:raise")
    with pytest.raises(ParityError, match="`x` differs") as caught:
        run()
    assert (caught.value.hint, caught.value.facts["expected"]) == ("look at it", 1)
    assert "_misbehave" in caught.value.facts["traceback"]
    monkeypatch.delenv("STAND_IN_FAULT")
    stand_in.ran()
    run()
    assert stand_in.ran() == ["verify", "evaluate", "bench"]


def test_failed_stage_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:unexpected")
    with pytest.raises(ExportError):
        run()
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "distill",
        "log.jsonl",
        "prepare",
        "recipe.toml",
    ]


def test_report_of_an_earlier_result_goes_when_a_stage_is_made_anew(run, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / run()["run"]
    (folder / "bench" / "manifest.json").unlink()
    monkeypatch.setenv("STAND_IN_FAULT", "bench:raise")
    with pytest.raises(ParityError):
        run()
    assert not (folder / "report.html").exists()
    assert not (folder / "summary.json").exists()


def test_file_that_is_edited_while_a_stage_reads_it_is_named_and_the_result_not_kept(
    run, tmp_path, monkeypatch, recipe_path
):
    monkeypatch.setenv("STAND_IN_FAULT", "prepare:edit")
    prompts = recipe_path.parent / "prompts.jsonl"
    with pytest.raises(ArtifactError, match=f"`{prompts}` was changed while stage `prepare` was at work"):
        run()
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert not (folder / "prepare").exists()
    monkeypatch.delenv("STAND_IN_FAULT")
    folder = tmp_path / "runs" / run()["run"]
    text = (folder / "prepare" / "train.jsonl").read_text(encoding="utf-8")
    assert json.loads(text)["prompts"] == 3  # those of the edited file


def test_file_of_an_earlier_stage_that_is_altered_meanwhile_is_noticed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "verify:raise")
    with pytest.raises(ParityError):
        run()
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    watched = WatchedFiles()
    watched.add([folder / "export" / "gguf-f16.gguf", folder / "prepare" / "train.jsonl"])
    watched.check(stage="evaluate")
    (folder / "export" / "gguf-f16.gguf").unlink()
    with pytest.raises(ArtifactError, match=r"gguf-f16\.gguf` was removed while stage `evaluate`"):
        watched.check(stage="evaluate")


def test_stage_that_failed_in_part_is_kept_to_look_at_and_made_anew(run, stand_in, monkeypatch, caplog):
    monkeypatch.setenv("STAND_IN_FAULT", "bench:part")
    assert len(run()["stages"]) == 6
    monkeypatch.delenv("STAND_IN_FAULT")
    stand_in.ran()
    run()
    assert stand_in.ran() == ["bench"]
    assert "bench: making it anew, because `gguf-f16, 1 thread` failed in it" in caplog.text
    run()
    assert stand_in.ran() == []


def test_stage_that_failed_in_part_is_not_taken_from_a_sibling(run, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "bench:part")
    run()
    monkeypatch.delenv("STAND_IN_FAULT")
    stand_in.ran()
    run("seed=7", "prepare.seed=7", "distill.seed=7", "evaluate.seed=7", "name=tiny", "verify.texts=19")
    assert stand_in.ran() == ["verify", "bench"]


def test_what_killed_runs_left_is_swept_also_beside_stages_that_are_there(run, tmp_path):
    folder = tmp_path / "runs" / run()["run"]
    (folder / ".partial-evaluate-ab12cd34").mkdir()
    (folder / ".summary.json-ab12cd34.tmp").touch()
    (folder / ".resume-distill-0123456789abcdef").mkdir()
    (folder / "bench").rename(
        folder / ".partial-bench-old"
    )  # killed between the two renames of a replacement
    assert all(row["cached"] for row in run()["stages"])
    assert not [path.name for path in folder.iterdir() if path.name[0] == "." and path.name != ".lock"]
