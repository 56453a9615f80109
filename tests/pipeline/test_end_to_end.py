"""`ammd run` with the real stages, on a random model of four layers: every file, every number, twice."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

RECIPE = """\
name = "tiny"

[prepare]
teacher = "{teacher}"
prompts = "prompts.jsonl"
heldout = "heldout.jsonl"
response_tokens = 8
student = {{ kind = "depth", layers = 2 }}

[distill]
batch_size = 4
warm = {{ steps = 2 }}
objective = {{ kind = "ammd", steps = 2 }}

[export]
schemes = ["gguf-f16", "onnx-int4"]

[verify]
texts = 2
greedy_prompts = 2
greedy_tokens = 4

[evaluate]
prompts = 2
file_prompts = 2
kl_texts = 2
answer_tokens = 8

[bench]
threads = [1]
prompt_tokens = 8
decode_tokens = 4
processes = 1
max_processes = 1
retries = 0
repetitions = 1
max_repetitions = 1
max_warmup = 1
cold_loads = 0
bandwidth = false
"""


@pytest.fixture
def recipe(tmp_path, tiny_checkpoint) -> Path:
    for name, count in (("prompts", 8), ("heldout", 4)):
        lines = [json.dumps({"prompt": f"{name} the {index}"}) + "\n" for index in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(teacher=tiny_checkpoint), encoding="utf-8")
    return path


def ammd(*arguments):
    command = [sys.executable, "-P", "-c", "from ammd.pipeline.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_examples(folder):
    """Run the model card's own Python lines where it says that they run."""
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def check_release(run, folder, words_of_this_machine):
    """Bundle a run, unpack it elsewhere, and use it there as its card says."""
    document = json.loads(ammd("bundle", run, "--for", "desktop", "-o", folder / "release", "--json"))
    assert "all as they were made" in ammd("verify", document["archive"], "--unpack", folder / "got")
    run_examples(folder / "got")
    written = [path for path in (folder / "got").rglob("*") if path.is_file()]
    assert len(written) > 8
    for path in written:
        assert words_of_this_machine(path.read_bytes(), folder) == [], path
    parts = (folder / "got" / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(parts) is None
    again = json.loads(ammd("bundle", run, "--for", "desktop", "-o", folder / "again", "--json"))
    assert again["archive_sha256"] == document["archive_sha256"]


@pytest.mark.real
def test_recipe_to_report_and_again(recipe, tmp_path, words_of_this_machine):
    runs = tmp_path / "runs"
    summary = json.loads(ammd("run", recipe, "--runs-dir", runs, "--json"))
    assert [row["stage"] for row in summary["stages"]] == [
        "prepare",
        "distill",
        "export",
        "verify",
        "evaluate",
        "bench",
    ]
    assert [row["name"] for row in summary["artifacts"]] == ["gguf-f16", "onnx-int4"]
    for row in summary["artifacts"]:
        assert Path(row["path"]).exists()
        assert row["parity"]["faults"] == []
        assert row["quality"]["kl_to_teacher_nats"] >= 0
        assert row["bench"]["decode_tokens_per_s"] > 0
    teacher = next(row for row in summary["models"] if row["name"] == "teacher")
    assert teacher["quality"]["kl_to_teacher_nats"] == pytest.approx(0, abs=1e-5)  # float32 rounding
    assert (Path(summary["path"]) / "report.html").stat().st_size > 10_000
    assert summary["measured_on"]["cores"] == summary["machine"]["cores"]  # all on this machine
    assert summary["origin"]["teacher"]["revision"].startswith("sha256:")
    run_examples(Path(summary["path"]))
    check_release(summary["path"], tmp_path, words_of_this_machine)

    sides = [f"{summary['path']}:{name}" for name in ("student", "gguf-f16")]
    changes = json.loads(ammd("compare", *sides, "--runs-dir", runs, "--json"))["changes"]
    moved = {row["metric"]: row["change"] for row in changes}
    assert moved["kl_to_teacher_nats"] == pytest.approx(
        0, abs=1e-3
    )  # an F16 file is its student, but for rounding
    assert {"exposure_bias_nats", "greedy_prefix_tokens", "tv_on_own"} <= moved.keys()
    template = tmp_path / "mine.toml"
    template.write_text(
        'max_tokens = 4\nprompts = [{ prompt = "the thing" }]\nchecks = [{ kind = "like_teacher" }]\n',
        encoding="utf-8",
    )
    compared = json.loads(ammd("compare", *sides, "--template", template, "--runs-dir", runs, "--json"))
    assert [row["verdict"] for row in compared["changes"]] == ["undecided"]  # one prompt judges nothing

    again = json.loads(ammd("run", recipe, "--runs-dir", runs, "--json"))
    assert all(row["cached"] for row in again["stages"])
    assert again["artifacts"] == summary["artifacts"]

    student = Path(summary["path"]) / "distill" / "student"
    out = tmp_path / "phone"
    files = json.loads(ammd("export", student, "--out", out, "--set", "schemes=['gguf-f16']", "--json"))
    exported = Path(files["artifacts"][0]["path"])
    in_run = Path(summary["artifacts"][0]["path"])
    assert exported.read_bytes() == in_run.read_bytes()

    limits = ["--set", "texts=1", "--set", "greedy_prompts=1"]
    proof = json.loads(ammd("verify", in_run, "--against", student, *limits, "--json"))
    assert proof["parity"]["gguf-f16"]["faults"] == []
    judged = ["--set", "prompts=1", "--set", "file_prompts=1", "--set", "kl_texts=1"]
    quality = json.loads(ammd("eval", in_run, *judged, "--json"))
    assert quality["quality"]["gguf-f16"]["rouge_l"] >= 0
    speed = ["--set", "threads=[1]", "--set", "prompt_tokens=8", "--set", "decode_tokens=4"]
    for key in ("processes", "max_processes", "repetitions", "max_repetitions", "max_warmup"):
        speed += ["--set", f"{key}=1"]
    timing = json.loads(ammd("bench", in_run, *speed, "--set", "retries=0", "--json"))
    assert timing["bench"]["gguf-f16"]["ttft_s"] > 0
    ammd("chat", in_run, "--prompt", "the", "--max-tokens", 3)
