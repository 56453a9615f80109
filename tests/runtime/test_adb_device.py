"""The stock `adb` client against a stand-in for its server (`adb_stand_in.py`); no phone is involved."""

from __future__ import annotations

import importlib.util
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime.devices import open_device

pytestmark = pytest.mark.skipif(not shutil.which("adb"), reason="Android's `adb` client is missing")
SERIAL = "ZY22ABCDEF"


def _load_stand_in() -> Any:
    path = Path(__file__).with_name("adb_stand_in.py")
    specification = importlib.util.spec_from_file_location("adb_stand_in", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def phones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Stand-in server with one phone."""
    with _load_stand_in().StandIn(tmp_path / "root", {SERIAL: "device"}) as server:
        monkeypatch.setenv("ADB_SERVER_SOCKET", server.address)
        yield server
        server.shutdown()


def test_scripts_and_files_cross_the_connection(phones: Any, tmp_path: Path) -> None:
    with open_device(f"adb:{SERIAL}") as device:
        ran = device.run('echo "it\'s" there; echo err >&2; exit 3')
        assert (ran.exit_code, ran.stdout, ran.stderr) == (3, "it's there\n", "err\n")
        source = tmp_path / "source"
        source.write_bytes(bytes(range(256)) * 4096)
        device.push(source, f"{device.folder}/it's")
        device.pull(f"{device.folder}/it's", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    there = phones.root / "data/local/tmp/ammd"
    assert [path.name for path in there.iterdir()] == ["it's"]


def test_the_only_phone_needs_no_name(phones: Any) -> None:
    with open_device("adb:") as device:
        assert device.name == f"adb:{SERIAL}"


def test_of_two_phones_one_has_to_be_named(phones: Any) -> None:
    phones.phones["emulator-5554"] = "device"
    with pytest.raises(RecipeError, match=rf"2 phones are attached .*: `adb:{SERIAL}`, `adb:emulator-5554`"):
        open_device("adb:")


def test_no_phone_is_said(phones: Any) -> None:
    phones.phones.clear()
    with pytest.raises(EngineError, match="no phone is attached"):
        open_device("adb:")
    with pytest.raises(EngineError, match="`adb:other` is not attached") as caught:
        open_device("adb:other")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unauthorized", "has not allowed this computer"),
        ("offline", "is offline"),
        ("no permissions (user in plugdev group)", "may not be opened by this user"),
        ("recovery", "is in the state `recovery`"),
    ],
)
def test_a_phone_that_may_not_be_used_is_said(phones: Any, state: str, said: str) -> None:
    phones.phones[SERIAL] = state
    with pytest.raises(EngineError, match=f"`adb:{SERIAL}` {said}".replace("(", r"\(")):
        open_device("adb:")


def test_unplugged_in_the_middle_is_said_and_ends_the_script(phones: Any, tmp_path: Path) -> None:
    device = open_device("adb:")
    threading.Thread(target=_unplug, args=(phones, tmp_path / "up")).start()
    with pytest.raises(EngineError, match=f"the connection to `adb:{SERIAL}` was lost"):
        device.run(f"echo up > {tmp_path}/up; cat; echo over > {tmp_path}/over", held=True)
    assert _comes(tmp_path / "over")


def test_no_space_left_is_said(phones: Any, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "source").write_bytes(b"x" * 10_000)
    with open_device("adb:") as device:
        part = phones.root / "data/local/tmp/ammd/model.part"
        _ = device.folder
        part.symlink_to("/dev/full")
        with pytest.raises(EngineError, match=f"`adb:{SERIAL}` has no space left: copying `source`"):
            device.push(tmp_path / "source", f"{device.folder}/model")
    assert not list(part.parent.iterdir())


@pytest.mark.parametrize("target", ["adb:a b", "adb:-s", "adb:x;y"])
def test_malformed_serials_are_refused(target: str) -> None:
    with pytest.raises(RecipeError, match="is malformed"):
        open_device(target)


def _unplug(phones: Any, sign: Path) -> None:
    assert _comes(sign)
    phones.unplug(SERIAL)


def _comes(path: Path) -> bool:
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return True
        time.sleep(0.05)
    return False
