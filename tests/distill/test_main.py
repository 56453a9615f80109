"""The distill stage started by hand, in one process; several are in test_fleet.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ammd.distill.__main__ import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def settings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "distill.toml"
    path.write_text(text)
    return path


def test_a_prepared_folder_becomes_a_student(small_prepared: Path, tmp_path: Path) -> None:
    wanted = settings(
        tmp_path,
        '[distill]\nbatch_size = 8\nprecision = "float32"\nwarm = { steps = 2 }\nobjective = { steps = 2 }\n',
    )
    done = run(small_prepared, tmp_path / "out", "--settings", wanted)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
    for more in ((), ("--resume", tmp_path / "state")):  # finished: not even to go on
        again = run(small_prepared, tmp_path / "out", *more)
        assert again.exit_code == 2
        assert "is not empty" in again.output
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size = ", "is not TOML"),
        ("batch_sise = 8\n[warm]\nsteps = 0", "`warm.steps`: Input should be greater"),
        ("batch_sise = 8\n[warm]\nsteps = 0", "`batch_sise`: Extra inputs"),
    ],
)
def test_wrong_settings_are_one_usage_error(
    small_prepared: Path, tmp_path: Path, text: str, message: str
) -> None:
    done = run(small_prepared, tmp_path / "out", "--settings", settings(tmp_path, text))
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_stage_has_its_exit_code_and_hint(small_prepared: Path, tmp_path: Path) -> None:
    (small_prepared / "teacher_states.npy").unlink()
    done = run(small_prepared, tmp_path / "out")
    assert done.exit_code == 4, done.output
    assert done.output.startswith("error: cannot read the teacher's states in")
