"""Download one file of a package with the user's own pip, checked against its sha256.

pip knows what a download needs to know: indexes, mirrors, proxies, certificates, credentials. It runs as a
child that gets one requirement with a hash and nothing else to decide. Its temporary files lie in the
caller's staging folder, so that a killed download leaves nothing elsewhere.

pip takes a broken connection up again where it stopped (`--resume-retries`, pip 25.1); a broken-off process
starts anew. Before it hands over a source archive, pip asks the archive's build backend for metadata, which
would install build tools and run foreign code; a stand-in backend that only states name and version
answers instead, so nothing of the archive is run.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from .errors import FetchError
from .progress import Progress, progress

_OLDEST_PIP = (25, 1)  # the first with --resume-retries
_OPTIONS = (
    *("--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-deps", "--require-hashes"),
    *("--progress-bar", "raw", "--retries", "2", "--timeout", "15", "--resume-retries", "8"),
)
_STAND_IN = """\
import pathlib

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{package}-{version}.dist-info")
    folder.mkdir()
    text = "Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n"
    (folder / "METADATA").write_text(text)
    return folder.name
"""
_PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")
_NO_CONNECTION = ("Retrying (Retry(", "Connection to", "ConnectionError", "Name or service not known")


def download_file(
    requirement: str, folder: Path, *, sha256: str, build_backend: str | None = None, size_bytes: int | None
) -> Path:
    """Download the wheel, or with `build_backend` the source archive, that `requirement` names.

    Args:
        requirement: `PACKAGE==VERSION`.
        folder: An existing folder for the file and for pip's temporary files.
        sha256: What the file must hash to.
        build_backend: For a source archive: the module that its pyproject.toml names as build backend.
        size_bytes: The expected size, for the progress bar until pip knows it; None if unknown.

    Raises:
        FetchError: pip is too old, the index cannot be reached or lacks the file, or the hash differs.
    """
    check_pip()
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    target = folder / "download"
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONIOENCODING": "utf-8"}
    kind = ["--only-binary", ":all:"]
    if build_backend is not None:
        kind = ["--no-binary", ":all:", "--no-build-isolation"]
        _write_stand_in(folder / "backend", build_backend, requirement)
        environment["PYTHONPATH"] = str(folder / "backend")
    command = [sys.executable, "-P", "-m", "pip", "download", *_OPTIONS, *kind]
    command += ["--dest", str(target), "--requirement", str(wanted)]
    with progress(f"fetch {requirement}", size_bytes or 1) as report:
        status, log = _run(command, environment=environment, report=report)
    files = [path for path in target.iterdir() if path.is_file()] if target.is_dir() else []
    if status != 0 or len(files) != 1:
        raise _explain(requirement, log)
    return files[0]


def check_pip() -> None:
    """Check that this interpreter has a pip that can take a broken download up again.

    Raises:
        FetchError: There is none, or it is older than 25.1.
    """
    hint = f"run `{Path(sys.executable).name} -m ensurepip --upgrade`, then `-m pip install --upgrade pip`"
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as exc:
        raise FetchError(
            "pip is not installed beside ammd, it downloads the pinned files", hint=hint
        ) from exc
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_PIP:
        raise FetchError(f"pip `{version}` is too old to download pinned files, 25.1 is needed", hint=hint)


def _write_stand_in(folder: Path, backend: str, requirement: str) -> None:
    package, _, version = requirement.partition("==")
    module = folder.joinpath(*backend.split("."))
    module.parent.mkdir(parents=True)
    for parent in module.relative_to(folder).parents[:-1]:
        (folder / parent / "__init__.py").touch()
    text = _STAND_IN.format(package=package.replace("-", "_"), version=version)
    module.with_suffix(".py").write_text(text, encoding="utf-8")


def _run(command: list[str], *, environment: dict[str, str], report: Progress) -> tuple[int, list[str]]:
    """Run pip, pass its progress on, and return its exit status and the other lines it wrote."""
    log: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if found := _PROGRESS_LINE.match(line):
                    report(int(found[1]), f"{int(found[1]) / 2**20:.0f} MiB")
                else:
                    log.append(line.rstrip())
        except BaseException:  # Ctrl-C among them: no pip may go on writing into a folder that is removed
            child.kill()
            raise
    return child.returncode, log


def _explain(requirement: str, log: list[str]) -> FetchError:
    text = "\n".join(log)
    offline = "connect to the network, or set AMMD_OFFLINE_DIR to a folder that holds the file"
    if "DO NOT MATCH THE HASHES" in text:
        found = re.search(r"Got\s+([0-9a-f]{64})", text)
        return FetchError(
            f"the index's file for `{requirement}` does not have the pinned sha256",
            hint="do not use that file; check the pin and the index that pip is configured with",
            found=found[1] if found else None,
        )
    if any(mark in text for mark in _NO_CONNECTION):
        return FetchError(f"`{requirement}` cannot be downloaded: no package index answers", hint=offline)
    if "No matching distribution found" in text:
        return FetchError(f"no package index has a matching file for `{requirement}`", hint=offline)
    errors = [line for line in log if line.startswith("ERROR")] or log[-1:] or ["pip said nothing"]
    return FetchError(f"pip cannot download `{requirement}`: {errors[-1]}", hint=offline)
