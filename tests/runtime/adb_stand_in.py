"""A stand-in for adb's server with phones behind it, for tests: the stock `adb` client connects to it over TCP.

It speaks the client's protocol (a length in hex and a request; OKAY or FAIL) for `host:version`, `host:devices`,
`host:features`, `host:transport:SERIAL` and `shell,v2`. What a phone's shell is asked to do runs in a sandbox folder
of this machine: /data/local/tmp and / as `$ROOT` lie in it, and a folder of its own comes first on the path. It is no
phone: there is no Android in it, and nothing is emulated but where files lie.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

_VERSION = 41  # of the protocol between adb's client and server
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_FEATURES = "shell_v2,cmd"


class StandIn(socketserver.ThreadingTCPServer):
    """The server; `phones` maps serial to state."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, root: Path, phones: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.root = root
        self.phones = dict(phones)
        self.shells: list[subprocess.Popen[bytes]] = []
        self.sockets: list[socket.socket] = []
        (root / "data/local/tmp").mkdir(parents=True)
        (root / "bin").mkdir()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self) -> str:
        """What `ADB_SERVER_SOCKET` has to say."""
        return f"tcp:127.0.0.1:{self.server_address[1]}"

    def tool(self, name: str, script: str) -> None:
        """Give the phone a command."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def unplug(self, serial: str) -> None:
        """Pull the cable: connections end, and what ran loses its standard input."""
        self.phones.pop(serial)
        for connection in self.sockets:
            connection.shutdown(socket.SHUT_RDWR)

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """Run a script as the phone's shell would."""
        there = "/data/local/tmp"  # also where a script names it as an earlier one printed it
        script = script.replace(f"{self.root}{there}", there).replace(there, f"{self.root}{there}")
        shell = subprocess.Popen(
            ["sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT": str(self.root)},
        )
        self.shells.append(shell)
        return shell


class _Client(socketserver.BaseRequestHandler):
    server: StandIn
    request: socket.socket

    def handle(self) -> None:
        while (request := self._request()) is not None:
            if not self._answer(request):
                return

    def _request(self) -> str | None:
        head = self._read(4)
        return self._read(int(head, 16)).decode() if head else None

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.request.recv(count - len(data))
            if not more:
                return b""
            data += more
        return data

    def _answer(self, request: str) -> bool:
        """Answer one request; tell whether more may follow on this connection."""
        kind, _, rest = request.partition(":")
        if kind.startswith("shell,v2"):
            self._okay()
            self._shell(rest)
            return False
        if request == "host:version":
            return self._say(f"{_VERSION:04x}")
        if request in ("host:devices", "host:devices-l"):
            return self._say("".join(f"{serial}\t{state}\n" for serial, state in self.server.phones.items()))
        if request == "host:features":
            return self._say(_FEATURES)
        # host:transport:SERIAL, host:tport:serial:SERIAL or host-serial:SERIAL:features
        verb, _, argument = rest.partition(":")
        serial = rest.rpartition(":")[0] if kind == "host-serial" else argument.removeprefix("serial:")
        if serial not in self.server.phones:
            return self._fail(f"device '{serial}' not found")
        if self.server.phones[serial] != "device":
            return self._fail(f"device {self.server.phones[serial]}.")
        if kind == "host-serial":
            return self._say(_FEATURES)
        self._okay()
        if verb == "tport":
            self.request.sendall(struct.pack("<Q", 1))
        return True

    def _okay(self) -> None:
        self.request.sendall(b"OKAY")

    def _say(self, text: str) -> bool:
        self.request.sendall(b"OKAY" + f"{len(text):04x}".encode() + text.encode())
        return False

    def _fail(self, text: str) -> bool:
        self.request.sendall(b"FAIL" + f"{len(text):04x}".encode() + text.encode())
        return False

    def _shell(self, script: str) -> None:
        shell = self.server.start(script)
        self.server.sockets.append(self.request)
        lock = threading.Lock()
        readers = [
            threading.Thread(target=self._forward, args=(kind, stream, lock), daemon=True)
            for kind, stream in ((_STDOUT, shell.stdout), (_STDERR, shell.stderr))
        ]
        feeder = threading.Thread(target=self._feed, args=(shell,), daemon=True)
        for thread in (*readers, feeder):
            thread.start()
        for thread in readers:
            thread.join()
        self._packet(_EXIT, bytes([shell.wait() & 0xFF]), lock)
        self.server.sockets.remove(self.request)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RD)  # ends the feeding thread
        feeder.join()
        for stream in (shell.stdout, shell.stderr):
            stream.close()

    def _forward(self, kind: int, stream: object, lock: threading.Lock) -> None:
        while data := os.read(stream.fileno(), 32768):  # type: ignore[attr-defined]
            self._packet(kind, data, lock)

    def _feed(self, shell: subprocess.Popen[bytes]) -> None:
        """Pass on what the client writes, until it ends or is cut off."""
        assert shell.stdin
        with contextlib.suppress(OSError, ValueError), shell.stdin:
            while head := self._read(5):
                kind, size = struct.unpack("<BI", head)
                data = self._read(size)
                if kind == _CLOSE_STDIN:
                    break
                if kind == _STDIN:
                    shell.stdin.write(data)
                    shell.stdin.flush()

    def _packet(self, kind: int, data: bytes, lock: threading.Lock) -> None:
        with contextlib.suppress(OSError), lock:
            self.request.sendall(struct.pack("<BI", kind, len(data)) + data)
