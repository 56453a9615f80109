"""Manifests and signatures that are anything at all: refused by name, never a traceback, never a write elsewhere."""

import contextlib
import json
import tempfile
from pathlib import Path

import minisign
from hypothesis import given, settings
from hypothesis import strategies as st

from ammd.artifact import hash_file
from ammd.errors import ArtifactError
from ammd.pipeline.bundle_manifest import is_bundle
from ammd.pipeline.bundle_verify import verify_bundle

GENERATED = settings(max_examples=200, deadline=None, derandomize=True, database=None)
PUBLIC = minisign.KeyPair.generate().public_key.to_base64().decode()
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
paths = st.sampled_from(
    ["a", "A", "b/c", "../x", "/etc/passwd", "", ".", "a\0", "C:\\x", "manifest.json", "b"]
)
records = st.fixed_dictionaries(
    {}, optional={"path": paths | values, "bytes": st.just(1) | values, "sha256": values, "more": values}
)
manifests = st.fixed_dictionaries(
    {
        "schema": st.just("ammd.bundle/1") | values,
        "name": st.text(max_size=5) | values,
        "target": st.just("ios"),
    },
    optional={"files": st.lists(records, max_size=3) | values},
)


def _check(contents: bytes, *, public_key: str | None = None, signature: bytes | None = None) -> None:
    with tempfile.TemporaryDirectory() as desk:
        folder = Path(desk, "bundle")
        folder.mkdir()
        (folder / "a").write_bytes(b"x")
        (folder / "manifest.json").write_bytes(contents)
        if signature is not None:
            (folder / "manifest.json.minisig").write_bytes(signature)
        is_bundle(folder)
        with contextlib.suppress(ArtifactError):
            found = verify_bundle(folder, public_key=public_key)
            assert found["files"] == 1
            assert public_key is None
            assert json.loads(contents)["files"][0]["sha256"] == hash_file(folder / "a")


@GENERATED
@given(document=manifests | values)
def test_any_manifest_is_read_or_refused(document: object) -> None:
    _check(json.dumps(document).encode("utf-8", "surrogatepass"))


@GENERATED
@given(contents=st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_manifest(contents: bytes) -> None:
    _check(contents)


def test_deep_nesting_is_refused() -> None:
    _check(b"[" * 200_000)
    _check(b'{"schema": "ammd.bundle/1", "name": "x", "target": "y", "files": ' + b"[" * 200_000)


@GENERATED
@given(signature=st.binary(max_size=400) | st.text(max_size=300).map(str.encode))
def test_any_signature_is_refused(signature: bytes) -> None:
    record = {
        "path": "a",
        "bytes": 1,
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    document = {"schema": "ammd.bundle/1", "name": "x", "target": "y", "files": [record]}
    _check(json.dumps(document).encode())
    _check(json.dumps(document).encode(), public_key=PUBLIC, signature=signature)
