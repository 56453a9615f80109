"""Signatures in minisign's form, held against minisign itself where it is installed."""

import shutil
import subprocess

import minisign
import pytest

from ammd.errors import ArtifactError, RecipeError
from ammd.pipeline.bundle import make_bundle
from ammd.pipeline.bundle_archive import write_archive
from ammd.pipeline.bundle_choice import Target
from ammd.pipeline.bundle_verify import verify_bundle
from ammd.pipeline.signature import check_signature, read_secret_key, sign

needs_minisign = pytest.mark.skipif(not shutil.which("minisign"), reason="minisign is not installed")


@pytest.fixture
def keys(tmp_path):
    """A pair of keys: files of the secret and of the public one."""
    return _keys(tmp_path, "own")


def _keys(folder, name, password=None):
    pair = minisign.KeyPair.generate()
    public = folder / f"{name}.pub"
    public.write_bytes(bytes(pair.public_key) + b"\n")
    if password:
        pair.secret_key.encrypt(password, opslimit=1 << 15, memlimit=1 << 24)
    secret = folder / f"{name}.key"
    secret.write_bytes(bytes(pair.secret_key) + b"\n")
    return secret, public


@pytest.fixture
def signed(released, tmp_path, keys):
    """The folder of a signed bundle."""
    make_bundle(released[2], target=Target.IOS, out=tmp_path / "signed", key=keys[0])
    return tmp_path / "signed"


def test_a_signed_bundle_is_known_by_its_key(signed, keys, tmp_path):
    for bundle in (signed, signed.with_name("signed.tar.zst")):
        found = verify_bundle(bundle, public_key=str(keys[1]))
        assert (found["signature"], found["trusted_comment"]) == ("valid", "file:manifest.json\thashed")
        line = keys[1].read_text(encoding="ascii").splitlines()[1]
        assert verify_bundle(bundle, public_key=line)["signature"] == "valid"
        assert verify_bundle(bundle)["signature"] == "not checked"
        other = _keys(tmp_path, "other")[1]
        with pytest.raises(ArtifactError, match="has no valid signature: incompatible key"):
            verify_bundle(bundle, public_key=str(other))


def test_a_changed_manifest_is_noticed_though_all_hashes_are_right(signed, keys, tmp_path):
    path = signed / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace("ios", "android"), encoding="utf-8")
    assert verify_bundle(signed)["target"] == "android"
    with pytest.raises(ArtifactError, match="has no valid signature: signature verification failed"):
        verify_bundle(signed, public_key=str(keys[1]))
    write_archive(signed, tmp_path / "x.tar.zst", top="x", epoch=0)
    with pytest.raises(ArtifactError, match="has no valid signature"):
        verify_bundle(tmp_path / "x.tar.zst", public_key=str(keys[1]))


def test_a_missing_or_broken_signature_is_refused_where_a_key_is_given(signed, keys, bundle):
    with pytest.raises(ArtifactError, match="is not signed"):
        verify_bundle(bundle, public_key=str(keys[1]))
    (signed / "manifest.json.minisig").write_text("nothing", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is no signature"):
        verify_bundle(signed, public_key=str(keys[1]))


def test_the_same_key_signs_the_same_bytes_alike(signed, keys, released, tmp_path):
    make_bundle(released[2], target=Target.IOS, out=tmp_path / "again", key=keys[0])
    assert (tmp_path / "again.tar.zst").read_bytes() == (tmp_path / "signed.tar.zst").read_bytes()


def test_a_key_with_a_password_takes_it_from_the_environment(tmp_path, monkeypatch):
    secret, _ = _keys(tmp_path, "locked", password="open sesame")
    with pytest.raises(RecipeError, match="has a password") as caught:
        read_secret_key(secret)
    assert "AMMD_SIGN_PASSWORD" in caught.value.hint
    monkeypatch.setenv("AMMD_SIGN_PASSWORD", "guess")
    with pytest.raises(RecipeError, match="cannot sign: wrong password"):
        read_secret_key(secret)
    monkeypatch.setenv("AMMD_SIGN_PASSWORD", "open sesame")
    assert not read_secret_key(secret).is_encrypted()


@pytest.mark.parametrize("text", ["", "not a key", "untrusted comment: x\nAAAA", "\x00\xff"])
def test_what_is_no_key_is_refused(tmp_path, text, bundle):
    path = tmp_path / "bad.key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot sign"):
        read_secret_key(path)
    with pytest.raises(RecipeError, match="is no minisign public key"):
        verify_bundle(bundle, public_key=str(path))
    with pytest.raises(RecipeError, match="cannot read key"):
        read_secret_key(tmp_path / "none")


@needs_minisign
def test_minisign_accepts_our_signature_and_notices_a_change(signed, keys):
    command = ["minisign", "-V", "-m", signed / "manifest.json", "-p", keys[1]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Trusted comment: file:manifest.json" in done.stdout
    with (signed / "manifest.json").open("a", encoding="utf-8") as stream:
        stream.write(" ")
    assert subprocess.run(command, capture_output=True).returncode == 1


@needs_minisign
def test_keys_and_signatures_of_minisign_are_taken(tmp_path):
    secret, public = tmp_path / "m.key", tmp_path / "m.pub"
    subprocess.run(["minisign", "-G", "-W", "-p", public, "-s", secret], check=True, capture_output=True)
    path = tmp_path / "file"
    path.write_text("what is signed", encoding="utf-8")
    key = minisign.PublicKey.from_file(public)
    subprocess.run(["minisign", "-S", "-s", secret, "-m", path, "-t", "by the tool"], check=True)
    assert check_signature(path, key) == "by the tool"
    sign(path, read_secret_key(secret))
    assert check_signature(path, key) == "file:file\thashed"
