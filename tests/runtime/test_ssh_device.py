"""Against a real sshd on the loopback interface, with keys, configuration and port of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime import device_bench, ssh_device
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.device import Device
from ammd.runtime.device_heat import HeatGate
from ammd.runtime.device_tool import arm64_tool
from ammd.runtime.devices import open_device
from ammd.runtime.llama_tools import COMPILER, Arm64
from ammd.runtime.settings import BenchSettings

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    not SSHD or not shutil.which("ssh"), reason="OpenSSH's client or sshd is missing"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running sshd and the client configuration that knows it."""

    target: str
    process: subprocess.Popen[bytes]
    client: Path  # folder of the client's configuration

    def sessions(self) -> list[int]:
        """Return the processes that serve connections."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start an sshd; `ssh` on the path is the system's with this test's configuration."""
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(
            exist_ok=True
        )  # its own folder for separated privileges, made by the boot scripts
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    port = _free_port()
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"SetEnv XDG_CACHE_HOME={tmp_path}/remote PATH={tmp_path}/there:/usr/local/bin:/usr/bin:/bin\n"
    )
    log = (tmp_path / "sshd.log").open("wb")
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log)
    key = (tmp_path / "host.pub").read_text().rsplit(" ", 1)[0]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key}\n")
    (tmp_path / "config").write_text(
        f"Host *\n  IdentityFile {tmp_path}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {tmp_path}/known\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    _wait_for_port(port)
    try:
        yield Server(target=f"ssh:{getpass.getuser()}@127.0.0.1:{port}", process=process, client=tmp_path)
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.fixture
def device(server: Server) -> Iterator[Device]:
    with open_device(server.target) as device:
        yield device


pytestmark = needs_sshd


def test_scripts_and_files_cross_the_connection(
    device: Device, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_device, "_DEATH_S", 0.2)  # how long it waits to tell 255 from a lost connection
    ran = device.run("echo \"it's\" 'there'; echo err >&2; exit 255")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (255, "it's there\n", "err\n")
    assert device.folder == f"{tmp_path}/remote/ammd"
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4096)
    device.push(source, f"{device.folder}/it's")
    device.pull(f"{device.folder}/it's", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert len(server.sessions()) == 1  # all of it went through one connection


def test_close_ends_what_still_runs_and_leaves_no_socket(server: Server, tmp_path: Path) -> None:
    device = open_device(server.target)
    with pytest.raises(EngineError, match="has not finished"):
        device.run(f"echo up > {tmp_path}/up; cat; echo over > {tmp_path}/over", held=True, limit_s=0.5)
    device.close()
    assert _comes(tmp_path / "over")
    assert not server.sessions()


def test_the_end_of_the_process_ends_connection_and_scripts(server: Server, tmp_path: Path) -> None:
    code = (
        "import sys; from ammd.runtime.devices import open_device; "
        f"open_device(sys.argv[1]).run('echo up > {tmp_path}/up; cat; echo over > {tmp_path}/over', held=True)"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code, server.target])
    assert _comes(tmp_path / "up")
    process.kill()
    process.wait()
    assert _comes(tmp_path / "over")
    for _ in range(200):
        if not server.sessions():
            return
        time.sleep(0.05)
    raise AssertionError("the connection is still there")


def test_a_port_without_sshd_refuses(server: Server) -> None:
    with pytest.raises(EngineError, match=r"`ssh:127.0.0.1:\d+` refuses the connection") as caught:
        open_device(f"ssh:127.0.0.1:{_free_port()}")
    assert caught.value.exit_code == 6


def test_an_unknown_host_key_is_refused(server: Server) -> None:
    (server.client / "known").write_text("")
    with pytest.raises(EngineError, match="has a host key that is not known"):
        open_device(server.target)


def test_another_host_key_is_refused(server: Server) -> None:
    key = (server.client / "user.pub").read_text().rsplit(" ", 1)[0]
    known = (server.client / "known").read_text().split(" ")[0]
    (server.client / "known").write_text(f"{known} {key}\n")
    with pytest.raises(EngineError, match="has another host key than before"):
        open_device(server.target)


def test_an_unknown_user_key_is_refused(server: Server) -> None:
    (server.client / "user.pub").write_text((server.client / "host.pub").read_text())
    with pytest.raises(EngineError, match="lets this user not in"):
        open_device(server.target)


def test_a_connection_that_is_lost_ends_the_script_there(
    device: Device, server: Server, tmp_path: Path
) -> None:
    script = f"echo up > {tmp_path}/up; cat; echo over > {tmp_path}/over"
    threading.Thread(target=_cut, args=(server, tmp_path / "up")).start()
    with pytest.raises(EngineError, match=r"the connection to `ssh:.*` was lost"):
        device.run(script, held=True)
    assert _comes(tmp_path / "over")


def test_a_push_that_is_cut_off_leaves_no_file(device: Device, server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless")  # has no size: what comes is never what was announced
    folder = Path(device.folder)

    def write() -> None:
        with (tmp_path / "endless").open("wb") as stream:
            stream.write(b"x" * 1000)
            stream.flush()
            _cut(server, folder / "model.part")

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(EngineError, match="was lost"):
        device.push(tmp_path / "endless", f"{folder}/model")
    thread.join()
    for _ in range(200):
        if not list(folder.iterdir()):
            return
        time.sleep(0.05)
    raise AssertionError(list(folder.iterdir()))


@pytest.mark.real
@pytest.mark.skipif(
    not all(shutil.which(name) for name in (COMPILER, "cmake", "qemu-aarch64")),
    reason="cross compiler or emulator missing",
)
def test_llama_bench_measures_over_the_connection(
    server: Server, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_bench, "choose_tool", lambda facts, device: arm64_tool(Arm64.BASELINE))
    (server.client / "there").mkdir()
    (server.client / "there/taskset").write_text('#!/bin/sh\nshift; exec qemu-aarch64 "$@"\n')
    (server.client / "there/taskset").chmod(0o755)
    settings = BenchSettings(
        threads=(1,), processes=2, max_processes=2, repetitions=2, prompt_tokens=128, decode_tokens=64
    )
    heat = HeatGate(max_celsius=100, cool_down_s=0)
    with open_device(server.target) as device:
        document = device_bench.measure_on_device(
            device, [ArtifactRef(name="tiny", path=tiny_gguf)], settings, heat=heat
        )
    (row,) = document["bench"]["tiny"]["rows"]
    assert row["isa"] == "armv8-a"
    assert row["settings"]["flash_attention"] is True
    assert [len(one["decode_tokens_per_s"]) for one in row["samples"]] == [2, 2]
    assert row["decode_tokens_per_s_min"] > 0
    assert row["peak_rss_bytes"] > row["rss_anon_bytes"] > 0


def test_an_onnx_folder_runs_in_the_hosts_python(
    server: Server, tiny_onnx: Path, few_packages: Callable[..., Path]
) -> None:
    """Its Python has onnxruntime, numpy and tokenizers, and neither this project nor onnxruntime-genai."""
    python = few_packages("python3")
    settings = BenchSettings(
        threads=(1,),
        processes=2,
        max_processes=2,
        retries=0,
        repetitions=2,
        max_repetitions=2,
        max_warmup=1,
        prompt_tokens=8,
        decode_tokens=4,
        cold_loads=1,
    )
    heat = HeatGate(max_celsius=100, cool_down_s=0)
    with open_device(server.target) as device:
        document = device_bench.measure_on_device(
            device, [ArtifactRef(name="tiny", path=tiny_onnx)], settings, heat=heat, python=str(python)
        )
    (row,) = document["bench"]["tiny"]["rows"]
    assert row["engine"].startswith("onnxruntime 1.")
    assert 0 < row["token_p50_s"] <= row["token_p99_s"]
    assert [len(one["ttft_s"]) for one in row["samples"]] == [2, 2]
    # Linux counts its parts one after the other.
    assert 1.02 * row["peak_rss_bytes"] >= row["rss_bytes"] > row["idle_rss_bytes"] > 0
    assert row["load_warm_s"] > 0
    assert row["decode_of_ceiling"] > 0  # its memory's bandwidth was measured as well
    assert len(row["states"]) == len(row["noise"]) == 2
    (modules,) = (server.client / "remote/ammd").glob("ammd-*/ammd")
    assert sorted(path.name for path in modules.iterdir() if path.is_dir()) == ["__pycache__", "runtime"]


@pytest.mark.parametrize(
    "target",
    [
        "ssh:",
        "ssh:-oProxyCommand=x",
        "ssh:-F@host",
        "ssh:me@-host",
        "ssh:a b",
        "ssh:host:port",
        "telnet:host",
    ],
)
def test_malformed_targets_are_refused(target: str) -> None:
    with pytest.raises(RecipeError, match=r"device `.*` is"):
        open_device(target)


def _cut(server: Server, sign: Path) -> None:
    """Kill the connection once `sign` has come."""
    assert _comes(sign)
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "sshd":
                process.kill()


def _comes(path: Path) -> bool:
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return True
        time.sleep(0.05)
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("sshd did not start")
