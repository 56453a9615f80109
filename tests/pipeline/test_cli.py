"""The command line as a user meets it: help, exit codes, one document on standard output."""

import csv
import io
import json
import logging
import re
import subprocess
import sys

import click
import pytest

from ammd.export.to_gguf import write_gguf
from ammd.pipeline.cli import ammd_command
from ammd.pipeline.cli_options import read_share
from ammd.pipeline.launch import Outcome

HEAVY = ("torch", "transformers", "pydantic", "rich", "numpy", "matplotlib", "llama_cpp", "onnxruntime_genai")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["chat", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; sys.argv = ['ammd', *sys.argv[1:]]\n"
        "from ammd.pipeline.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr.strip() == "[]"
    assert done.stdout


@pytest.mark.parametrize("verb", ["run", "verify", "chat", "bench", "devices"])
def test_commands_load_without_the_resource_module(verb):
    code = (
        "import sys; sys.modules['resource'] = None; sys.argv = ['ammd', *sys.argv[1:]]\n"
        "import ammd.pipeline.launch, ammd.runtime.engine\n"
        "from ammd.pipeline.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_checking_a_recipe_imports_no_torch(recipe_path):
    code = (
        "import sys; from pathlib import Path; from ammd.pipeline.recipe import load_recipe\n"
        "load_recipe(Path(sys.argv[1]))\n"
        "import ammd.pipeline.run\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"


def test_every_help_ends_with_two_examples_of_its_own_command():
    for name, command in ammd_command.commands.items():
        context = click.Context(command, info_name=name, parent=click.Context(ammd_command, info_name="ammd"))
        *_, heading, first, second = command.get_help(context).rstrip().splitlines()
        assert heading.strip() == "Examples:", name
        assert first.strip().startswith(f"ammd {name}"), name
        assert second.strip().startswith(f"ammd {name}"), name


def test_commands_are_listed_in_the_order_of_the_path(ammd):
    code, out, _ = ammd()
    assert code == 0
    names = [
        line.split()[0] for line in out[out.index("Commands:") :].splitlines()[1:] if line.startswith("  ")
    ]
    assert names[:7] == ["run", "distill", "export", "verify", "eval", "bench", "chat"]


def test_help_of_no_command_is_cut_off(ammd):
    assert "..." not in ammd()[1].split("Commands:")[1].split("Examples:")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "error: No such command 'fly'"),
        (["run", "--fly"], "error: No such option '--fly'"),
        (["verify"], "error: Missing argument 'FILE'"),
        (["run", "none.toml"], "error: cannot read recipe `none.toml`"),
        (["bench", "x.gguf", "--set", "speed=1"], "error: `speed` = `1`: unknown key"),
        (["chat", "x.gguf", "--top-p", "2"], "error: Invalid value for '--top-p'"),
        (["chat", "x.gguf", "--repetition-penalty", "0"], "error: Invalid value for '--repetition-penalty'"),
        (["chat", "x.gguf", "--temperature", "inf"], "error: cannot sample with `temperature` = `inf`"),
        (["chat", "x.gguf", "--stop", ""], "error: a stop string is empty"),
        (["bench", "x.gguf", "--json", "--format", "md"], "error: `--json` and `--format md` exclude"),
        (["bench", "x.gguf", "--max-regression", "5%"], "error: `--max-regression` needs `--baseline`"),
        *(
            (
                ["bench", "x.gguf", "--baseline", "b", "--max-regression", share],
                "error: Invalid value for '--max",
            )
            for share in ("5", "100%", "1", "-1%", "5 percent", "nan", "", "%", "1e-2", "٥%")
        ),
        (
            ["bench", "x.gguf", "--engine", "ggml"],
            "error: Invalid value for '--engine': 'ggml' is not one of",
        ),
    ],
)
def test_usage_faults_exit_2_in_one_line(ammd, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = ammd(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "none.gguf"],
        ["chat", "none.gguf"],
        ["export", "none"],
        ["report", "none"],
        ["compare", "none", "none"],
    ],
)
def test_missing_files_exit_3(ammd, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = ammd(*arguments)
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_options_of_chat_reach_the_engine_and_standard_output_is_the_answer(
    ammd, tiny_checkpoint, monkeypatch
):
    # One of another test has its stream closed.
    monkeypatch.setattr(logging.getLogger("ammd"), "handlers", [])
    chat = ("chat", tiny_checkpoint, "--prompt", "the thing", "--max-tokens", 12)
    code, greedy, err = ammd(*chat)
    assert (code, err) == (0, "the answer is over: length\n")
    assert ammd(*chat, "--temperature", 5, "--top-k", 1, "--seed", 3)[1] == greedy
    assert ammd(*chat, "--temperature", 5, "--top-p", 1e-9)[1] == greedy
    assert ammd(*chat, "--temperature", 5, "--min-p", 1)[1] == greedy
    assert ammd(*chat, "--repetition-penalty", 100)[1] != greedy
    assert ammd(*chat, "--temperature", 5, "--seed", 1)[1] != ammd(*chat, "--temperature", 5, "--seed", 2)[1]
    stop = greedy[-2]  # before the newline that ends the answer
    code, out, err = ammd(*chat, "--stop", "never said", "--stop", stop)
    assert (code, out, err) == (0, greedy[: greedy.index(stop)] + "\n", "the answer is over: stop string\n")


def test_question_longer_than_the_context_exits_6(ammd, tiny_checkpoint):
    code, _, err = ammd("chat", tiny_checkpoint, "--prompt", "the thing", "--context-tokens", 4)
    assert code == 6
    assert "leaves no room in a context of 4\nhint: " in err


def test_interrupt_while_a_turn_is_awaited_exits_130_in_a_line_of_its_own(ammd, tiny_checkpoint, monkeypatch):
    class Terminal:
        def __iter__(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert ammd("chat", tiny_checkpoint) == (130, "> \n", "interrupted\n")


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("5%", 0.05), ("0.05", 0.05), (" 2.5% ", 0.025), (".1", 0.1), ("0", 0), ("99%", 0.99)],
)
def test_share_is_read_as_per_cent_or_fraction(text, fraction):
    assert read_share(None, None, text) == pytest.approx(fraction, abs=1e-15)


QUICK_BENCH = [
    f"--set={name}={value}"
    for name, value in {
        "threads": "[1]",
        "prompt_tokens": 8,
        "decode_tokens": 4,
        "processes": 3,
        "max_processes": 3,
        "retries": 0,
        "repetitions": 1,
        "max_repetitions": 1,
        "warmup": 0,
        "max_warmup": 0,
        "cold_loads": 0,
        "bandwidth": "false",
    }.items()
]


@pytest.fixture
def bench_stage(monkeypatch, bench_document):
    """Let the bench stage take no time and give the numbers of a document, of which the files are told apart."""

    def bench_stage(document):
        outcome = Outcome(
            results={key: document[key] for key in ("bench", "machine")},
            seconds=1.0,
            cpu_seconds=1.0,
            peak_rss_bytes=1,
            joules=None,
        )
        monkeypatch.setattr("ammd.pipeline.alone.run_in_child", lambda *_args, **_options: outcome)
        monkeypatch.setattr("ammd.pipeline.bench_files.describe_machine", lambda: document["machine"])

    return bench_stage


def test_gate_tells_a_slower_file_by_exit_code_table_and_json(
    ammd, tmp_path, recipe_path, bench_stage, bench_document
):
    model, baseline = recipe_path.parent / "teacher", tmp_path / "baseline.json"
    bench_stage(bench_document())
    code, out, _ = ammd("bench", model, "--json")
    assert code == 0
    baseline.write_text(out)

    code, out, err = ammd("bench", model, "--baseline", baseline, "--json")
    assert (code, "error" in err) == (0, False)
    assert {row["verdict"] for row in json.loads(out)["gate"]["rows"]} == {"fine"}

    bench_stage(bench_document(seed=1, slowdown=0.1))
    code, out, err = ammd("bench", model, "--baseline", baseline, "--json")
    assert code == 7
    gate = json.loads(out)["gate"]
    assert gate["max_regression"] == 0.05
    row = gate["rows"][0]
    assert (row["metric"], row["model"], row["threads"]) == ("decode_tokens_per_s", "x-q8_0.gguf", 2)
    assert row["low"] < row["ratio"] == row["current"] / row["baseline"] < row["high"] < 0.95
    assert row["verdict"] == "regression"
    assert "error: `x-q8_0.gguf, 2 threads`: `decode_tokens_per_s` is 0." in err
    assert "regression" in err.split("error:")[0]  # the table, off standard output

    code, out, _ = ammd("bench", model, "--baseline", baseline)
    assert (code, "against the baseline, 5.0% worse is allowed" in out) == (7, True)
    code, out, _ = ammd("bench", model, "--baseline", baseline, "--max-regression", "20%")
    assert (code, "regression" in out) == (0, False)
    code, out, _ = ammd("bench", model, "--baseline", baseline, "--format", "csv")
    assert code == 7
    assert [row["test"] for row in csv.DictReader(io.StringIO(out))] == ["pp128", "tg64"]


def test_failed_and_noisy_cells_are_told_and_only_failed_ones_end_with_6(
    ammd, tmp_path, recipe_path, bench_stage, bench_document
):
    model, baseline = recipe_path.parent / "teacher", tmp_path / "baseline.json"
    document = bench_document()
    bench_stage(document)
    baseline.write_text(ammd("bench", model, "--json")[1])
    row = document["bench"]["gguf-q8_0"]["rows"][0]
    row |= {"validity": "noisy", "validity_reasons": ["7 % of it"], "warmup_passes": [4], "replaced": []}
    bench_stage(document)
    code, out, err = ammd("bench", model)
    assert (code, err) == (0, "")
    assert re.search(r"gguf-q8_0 +2 +3 +15 +4 +noisy +7 % of it", out)
    code, out, _ = ammd("bench", model, "--format", "jsonl")
    assert {line["validity"] for line in map(json.loads, out.splitlines())} == {"noisy"}
    code, out, _ = ammd("bench", model, "--baseline", baseline)
    assert (code, "is noisy in this benchmark: 7 % of it" in out) == (0, True)

    failure = {"ended": "it was killed by SIGKILL", "message": "…", "hint": "close other programs"}
    failed = {"engine": "llama.cpp", "threads": 2, "failure": failure, "validity": "invalid", "replaced": []}
    failed |= {"validity_reasons": [failure["ended"]], "processes": 0}
    document["bench"]["gone"] = {**failed, "rows": [failed], "file": document["bench"]["gguf-q8_0"]["file"]}
    bench_stage(document)
    for form, tests in (("json", 0), ("csv", 2), ("table", 0)):
        code, out, err = ammd("bench", model, "--format", form)
        assert code == 6
        assert err.splitlines() == [
            "error: `gone, 2 threads` could not be measured: it was killed by SIGKILL",
            "hint: close other programs",
        ]
        assert out.count("pp128") + out.count("tg64") == tests  # what was measured is not lost
    code, out, err = ammd("bench", model, "--baseline", baseline, "--json")
    assert code == 6
    assert "not comparable" in err


def test_what_cannot_be_compared_exits_6_with_its_numbers(
    ammd, tmp_path, recipe_path, bench_stage, bench_document
):
    model, baseline = recipe_path.parent / "teacher", tmp_path / "baseline.json"
    bench_stage(bench_document())
    baseline.write_text(ammd("bench", model, "--json")[1])
    code, out, err = ammd("bench", model, "--baseline", baseline, "--set", "processes=2")
    assert (code, out) == (6, "")
    assert "hint: `--set processes=3`" in err
    document = bench_document()
    document["bench"]["gguf-q8_0"]["rows"][0]["settings"]["flash_attention"] = False
    bench_stage(document)
    code, out, err = ammd("bench", model, "--baseline", baseline, "--json")
    assert code == 6
    assert "`settings.flash_attention` was `True`, is `False`" in err
    assert "gate" not in json.loads(out)  # what was measured is not lost
    baseline.write_text("{}")
    code, out, err = ammd("bench", model, "--baseline", baseline)
    assert (code, out, len(err.splitlines())) == (3, "", 2)


def test_proofs_of_a_run_stand_beside_the_speed_of_the_same_file(
    ammd, tmp_path, recipe_path, bench_stage, bench_document
):
    model = recipe_path.parent / "teacher"
    (recipe_path.parent / "verify").mkdir()
    parity = recipe_path.parent / "verify" / "parity.json"
    bench_stage(bench_document())
    for sha256, expected in (("0" * 64, (0.25, "passed")), ("1" * 64, (None, None))):
        parity.write_text(json.dumps({"x": {"sha256": sha256, "kl_nats": 0.25, "faults": []}}))
        code, out, _ = ammd("bench", model, "--format", "jsonl")
        assert code == 0
        assert {(row["kl_nats"], row["proofs"]) for row in map(json.loads, out.splitlines())} == {expected}
    parity.write_text("[]")
    code, out, err = ammd("bench", model)
    assert (code, out) == (3, "")
    assert "is not what a verify stage writes" in err


def test_benchmark_of_a_real_file_has_not_regressed_against_itself(
    ammd, tmp_path, tiny_checkpoint, bench_stage
):
    model, baseline = tmp_path / "tiny-f16.gguf", tmp_path / "baseline.json"
    write_gguf(tiny_checkpoint, model, name="tiny")
    baseline.write_text(ammd("bench", model, *QUICK_BENCH, "--json")[1])
    document = json.loads(baseline.read_text())
    row = document["bench"]["gguf-f16"]["rows"][0]
    assert [len(one["ttft_s"]) for one in row["samples"]] == [1, 1, 1]
    assert row["ttft_s_low"] <= row["ttft_s"] <= row["ttft_s_high"]
    bench_stage(document)
    code, out, err = ammd("bench", model, *QUICK_BENCH, "--baseline", baseline, "--format", "json")
    assert code == 0, err
    assert {(row["model"], row["ratio"]) for row in json.loads(out)["gate"]["rows"]} == {("tiny-f16.gguf", 1)}


def test_same_model_twice_is_refused(ammd, recipe_path):
    teacher = recipe_path.parent / "teacher"
    code, _, err = ammd("bench", teacher, teacher)
    assert code == 2
    assert "named twice" in err


@pytest.mark.parametrize(
    "command", [["verify"], ["bench"], ["chat"], ["eval", "--teacher", "t", "--heldout", "h"]]
)
def test_engine_that_cannot_run_the_file_is_refused_before_any_work(ammd, tiny_checkpoint, command):
    code, out, err = ammd(command[0], tiny_checkpoint, *command[1:], "--engine", "onnxruntime")
    assert (code, out) == (6, "")
    assert f"error: `{tiny_checkpoint}` does not run in onnxruntime\nhint: torch runs it" in err


def test_verify_outside_a_run_takes_the_packaged_prompts(ammd, tiny_checkpoint):
    options = ("--set", "texts=2", "--set", "greedy_prompts=1", "--set", "greedy_tokens=4")
    code, out, _ = ammd("verify", tiny_checkpoint, "--against", tiny_checkpoint, *options, "--json")
    assert code == 0
    ((record,),) = [json.loads(out)["parity"].values()]
    assert record["kl_nats"] == pytest.approx(0, abs=1e-9)
    assert record["perplexity_change"] == pytest.approx(0, abs=1e-6)


def test_verify_notices_a_flipped_byte(ammd, tmp_path, tiny_checkpoint):
    code, _, err = ammd("export", tiny_checkpoint, "--out", tmp_path / "out", "--set", "schemes=['gguf-f16']")
    assert code == 0, err
    file = tmp_path / "out" / "student-f16.gguf"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    code, _, err = ammd("verify", file)
    assert code == 3
    assert f"`{file}` was altered: its sha256 is not the one in its manifest" in err
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web app"}')
    assert ammd("verify", file)[0] == 0


def test_dry_run_prints_a_recipe_that_runs_as_it_is(ammd, tmp_path, recipe_path):
    code, out, err = ammd("run", recipe_path, "--dry-run", "--set", "seed=3")
    assert (code, err) == (0, "")
    (tmp_path / "again.toml").write_text(out, encoding="utf-8")
    assert ammd("run", tmp_path / "again.toml", "--dry-run")[1] == out


def test_dry_run_as_json(ammd, recipe_path):
    document = json.loads(ammd("run", recipe_path, "--dry-run", "--json")[1])
    assert document["schema"] == "ammd.recipe/1"
    assert document["name"] == "tiny"


@pytest.fixture
def ran(recipe_path, tmp_path, stand_in):
    """A finished run of the stand-ins through the command line."""

    def ran(*options):
        process = stand_in.start(recipe_path, tmp_path / "runs", *options)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        return out, err

    return ran


def test_json_is_one_document_and_all_else_is_on_stderr(ran, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:print")
    out, err = ran("--json")
    document = json.loads(out)
    assert document["schema"] == "ammd.run/1"
    assert "chatter on standard output" in err
    assert "report.html" in err.splitlines()[-1]


def test_table_shows_every_model_and_stage(ran):
    out, _ = ran()
    for name in (
        "teacher",
        "student-pruned",
        "student-warm",
        "student",
        "gguf-f16",
        "gguf-q8_0",
        "bench",
        "KL to",
    ):
        assert name in out


def test_quiet_says_nothing_but_the_result(ran, tmp_path):
    _, err = ran("--quiet")
    assert err.strip().endswith("report.html")
    assert len(err.splitlines()) == 1


def test_runs_report_and_compare_read_finished_runs(ran, ammd, tmp_path):
    first = json.loads(ran("--json")[0])
    second = json.loads(ran("--json", "--set", "bench.repetitions=1")[0])
    runs = tmp_path / "runs"

    listed = json.loads(ammd("runs", "--runs-dir", runs, "--json")[1])
    assert {row["run"] for row in listed["runs"]} == {first["run"], second["run"]}
    assert all(row["state"] == "finished" for row in listed["runs"])
    assert first["run"] in ammd("runs", "--runs-dir", runs)[1]

    report = runs / first["run"] / "report.html"
    page = report.read_bytes()
    report.unlink()
    code, out, _ = ammd("report", first["run"], "--runs-dir", runs, "--json")
    assert code == 0
    assert json.loads(out)["artifacts"] == first["artifacts"]
    assert report.read_bytes() == page

    pair = [first["run"].split("/")[1][:6], second["run"]]
    document = json.loads(ammd("compare", *pair, "--runs-dir", runs, "--json")[1])
    assert document["schema"] == "ammd.compare/1"
    row = next(row for row in document["rows"] if (row["model"], row["metric"]) == ("gguf-f16", "rouge_l"))
    assert (row["first"], row["second"], row["ratio"]) == (0.4, 0.4, 1.0)
    assert "gguf-q8_0" in ammd("compare", *pair, "--runs-dir", runs)[1]

    code, _, err = ammd("report", "tiny", "--runs-dir", runs)
    assert code == 3
    assert "several runs answer to `tiny`" in err


def test_report_of_an_unfinished_run_is_refused(ran, ammd, tmp_path):
    summary = json.loads(ran("--json")[0])
    (tmp_path / "runs" / summary["run"] / "bench" / "manifest.json").unlink()
    code, _, err = ammd("report", summary["run"], "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert "is not finished: it lacks bench" in err


def test_unexpected_exception_is_a_defect_in_one_line(ammd, monkeypatch):
    def break_down(*_arguments, **_options):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("ammd.pipeline.runs_list.list_runs", break_down)
    code, _, err = ammd("runs")
    assert code == 1
    assert err.splitlines() == [
        "error: ZeroDivisionError: by nought",
        "hint: this is a defect; `--debug` shows where",
    ]


def test_bench_on_a_device_takes_no_profile_and_no_python_without_one(ammd, tmp_path):
    (tmp_path / "m.gguf").touch()
    code, out, err = ammd("bench", tmp_path / "m.gguf", "--device", "local", "--profile", "pixel-8")
    assert (code, out) == (2, "")
    assert "`--device` and `--profile` exclude each other" in err
    code, out, err = ammd("bench", tmp_path / "m.gguf", "--python", "python3")
    assert (code, out) == (2, "")
    assert "`--python` needs `--device`" in err


def test_bench_on_a_device_that_is_none_is_refused(ammd, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code, out, err = ammd("bench", tmp_path / "m.gguf", "--device", "telnet:host")
    assert (code, out) == (2, "")
    assert "error: device `telnet:host` is of no known kind" in err


@pytest.fixture
def device_file(monkeypatch, tmp_path):
    """A GGUF that a stand-in for llama-bench measures on `local`, at the rate that a file beside it names."""
    from ammd.runtime import device_bench
    from ammd.runtime.device_tool import Tool

    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    shared = {"flash_attn": 1, "n_batch": 512, "n_ubatch": 512, "load_mode": "none", "repack": True}
    shared |= {"type_k": "f16", "test_time": "2026", "n_prompt": 128}
    rows = [json.dumps(shared | {"n_gen": tokens, "samples_ts": ["RATE"] * 3}) for tokens in (0, 64)]
    program = tmp_path / "llama-bench"
    program.write_text(
        # It stays for as long as the agent needs to see its memory more than once.
        f"#!/bin/sh\nsleep 0.5\nsed s/.RATE./$(cat {tmp_path}/rate)/g <<'END'\n{rows[0]}\n{rows[1]}\nEND\n"
    )
    tool = Tool(isa="stand-in", source="a script", program=program, libraries=())
    monkeypatch.setattr(device_bench, "choose_tool", lambda facts, device: tool)
    (tmp_path / "rate").write_text("7.5")
    (tmp_path / "m-q4_0.gguf").write_bytes(b"GGUF")
    return ("bench", tmp_path / "m-q4_0.gguf", "--device", "local", "--set", "threads=[1]")


def test_bench_on_a_device_prints_a_table_one_document_or_rows(ammd, device_file):
    code, out, _ = ammd(*device_file, "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["device"]["name"]) == (0, "ammd.bench/2", "local")
    assert document["bench"]["gguf-q4_0"]["decode_tokens_per_s"] == pytest.approx(7.5)
    code, out, _ = ammd(*device_file)
    assert code == 0
    assert "speed, start and memory, on local" in out
    assert re.search(r"gguf-q4_0 .* 7\.5 \(7\.5 to 7\.5\)", out)
    code, out, _ = ammd(*device_file, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, [row["test"] for row in rows]) == (0, ["pp128", "tg64"])
    assert [row["ttft_s"] for row in rows] == ["", ""]


def test_bench_on_a_device_is_held_against_a_baseline_from_there(ammd, device_file, tmp_path):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(ammd(*device_file, "--json")[1])
    gated = (*device_file, "--baseline", baseline, "--max-regression", "5%")
    code, out, _ = ammd(*gated, "--json")
    assert code == 0
    found = {row["metric"]: row["verdict"] for row in json.loads(out)["gate"]["rows"]}
    assert found == dict.fromkeys(("decode_tokens_per_s", "prefill_tokens_per_s", "peak_rss_bytes"), "fine")
    (tmp_path / "rate").write_text("6.0")
    code, _, err = ammd(*gated)
    assert code == 7
    assert "`decode_tokens_per_s` is 0.800 of the baseline's" in err
    document = json.loads(baseline.read_text())
    del document["device"]
    baseline.write_text(json.dumps(document))
    (tmp_path / "llama-bench").write_text("#!/bin/sh\nexit 1\n")
    code, out, err = ammd(*gated)
    assert (code, out) == (6, "")  # refused before anything ran
    assert "`device` was `none: this machine`, is `local`" in err


def test_ctrl_c_on_a_device_says_that_nothing_runs_there(ammd, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ammd.pipeline.on_device.measure_on_device", interrupted)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code, out, err = ammd("bench", tmp_path / "m.gguf", "--device", "local")
    assert (code, out) == (130, "")
    assert "nothing runs on the device any more" in err


def test_devices_lists_this_machine(ammd, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("ammd.runtime.adb_device.has_adb", lambda: False)
    code, out, _ = ammd("devices", "--json")
    document = json.loads(out)
    assert (code, document["schema"]) == (0, "ammd.devices/1")
    assert [device["name"] for device in document["devices"]] == ["local"]
    code, out, _ = ammd("devices")
    assert (code, "local" in out) == (0, True)
