"""Build the wheel and compare its list of files with what the folders hold: nothing missing, nothing more."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "ammd": "ammd",
    "distill": "ammd/distill",
    "export": "ammd/export",
    "runtime": "ammd/runtime",
    "pipeline": "ammd/pipeline",
}
DATA = {
    "ammd": ["py.typed", "tasks/*.toml"],
    "runtime": ["*.toml", "*.sh"],
    "pipeline": ["recipes/*.toml", "templates/*.toml", "*.json", "*.jsonl", "*.j2", "*.css", "*.js"],
}


def main() -> int:
    """Print differences to stderr; return 0 if there are none."""
    with tempfile.TemporaryDirectory(prefix="ammd-wheel-") as desk:
        source = Path(desk, "source")
        # A copy: setuptools leaves `build/` behind and would pack what an earlier build left there.
        ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "runs", "__pycache__", "tests")
        shutil.copytree(ROOT, source, ignore=ignore)
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", desk, str(source)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(desk).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set(expected_files())
    for name in sorted(expected - names):
        sys.stderr.write(f"missing from the wheel: {name}\n")
    for name in sorted(names - expected):
        sys.stderr.write(f"not expected in the wheel: {name}\n")
    return int(names != expected)


def expected_files() -> list[str]:
    """Return the wheel's files but its metadata, from the folders and their mapping."""
    found = []
    for folder, package in FOLDERS.items():
        for pattern in ["*.py", *DATA.get(folder, [])]:
            paths = (ROOT / folder).glob(pattern)
            found += [f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in paths]
    return found


if __name__ == "__main__":
    sys.exit(main())
