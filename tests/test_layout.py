"""The shape of the house: who imports whom, what a light import loads, and what the README says of the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ammd", "distill", "export", "runtime", "pipeline")
ALLOWED = {
    "ammd": set(),
    "distill": {"ammd"},
    "export": {"ammd"},
    "runtime": {"ammd"},
    "pipeline": {"ammd", "distill", "export", "runtime"},
}


def imported_folders(path: Path) -> set[str]:
    """Return our folders that a module imports, by their installed names; bare ones as `bare NAME`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "ammd":
                names = [f"ammd.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "ammd":
                inner = rest.partition(".")[0]
                found.add(inner if inner in FOLDERS else "ammd")
            elif first in FOLDERS:
                found.add(f"bare {first}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        beyond = imported_folders(path) - ALLOWED[folder] - ({"ammd"} if folder == "ammd" else set())
        if path == ROOT / "ammd" / "__init__.py":
            beyond -= {"pipeline"}  # named for type checkers, and loaded when a script asks for it
        assert not beyond, f"{path.name} imports {beyond}"


def test_importing_ammd_loads_its_errors_and_no_more() -> None:
    code = "import sys, ammd; print([name for name in sys.modules if name.startswith('ammd.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ammd.errors']"


def test_the_rule_itself_sees_what_it_forbids(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text(
        "import export.stage\nfrom ammd.distill import stage\nfrom ammd import runtime\nimport ammd.errors"
    )
    assert imported_folders(module) == {"bare export", "distill", "runtime", "ammd"}


@pytest.mark.parametrize(
    "module", ["ammd.errors", "ammd.distill.settings", "ammd.export.settings", "ammd.runtime.settings"]
)
def test_light_modules_load_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'transformers', 'llama_cpp', 'onnxruntime_genai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_is_longer_than_400_lines() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_readme_names_each_folder_and_only_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## Files") :]
    named = set(re.findall(r"^(\w+)/ ", tree, flags=re.MULTILINE))
    assert named == {*FOLDERS, "tests", "benchmarks", "docs"}
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / link).is_file(), link


def test_readme_commands_are_commands() -> None:
    from ammd.pipeline.cli import ammd_command

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    verbs = set(re.findall(r"`ammd ([\w-]+)", readme))
    assert verbs <= set(ammd_command.commands)
