"""Signatures of bundles in minisign's form: Ed25519 over the manifest, which holds the hash of every other file.

`minisign -G` makes the keys and `minisign -Vm manifest.json -p KEY.pub` checks the signature as well. The trusted
comment names the file and has no time in it, so that the same key signs the same bytes alike.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from minisign import PublicKey, SecretKey, Signature

SUFFIX = ".minisig"
_LARGEST_BYTES = 16 << 10  # of a signature, which has four lines
PASSWORD_VARIABLE = "AMMD_SIGN_PASSWORD"


def read_secret_key(path: Path) -> SecretKey:
    """Return a key that can sign; its password is in the environment variable `AMMD_SIGN_PASSWORD`.

    Raises:
        RecipeError: There is no such key, or its password is missing or wrong.
    """
    from minisign import Error, SecretKey

    try:
        key = SecretKey.from_file(path)
        if key.is_encrypted():
            password = os.environ.get(PASSWORD_VARIABLE)
            if password is None:
                raise RecipeError(
                    f"key `{path}` has a password", hint=f"give it in the variable {PASSWORD_VARIABLE}"
                )
            key.decrypt(password)
    except OSError as exc:
        raise RecipeError(f"cannot read key `{path}`: {exc.strerror}", path=str(path)) from exc
    except (Error, ValueError) as exc:
        raise RecipeError(
            f"`{path}` cannot sign: {exc}", hint="`minisign -G` makes a pair of keys", path=str(path)
        ) from exc
    return key


def sign(path: Path, key: SecretKey) -> Path:
    """Write the signature of a file beside it and return where it lies."""
    signature = key.sign(path.read_bytes(), trusted_comment=f"file:{path.name}\thashed")
    target = signature_of(path)
    target.write_bytes(bytes(signature) + b"\n")
    return target


def signature_of(path: Path) -> Path:
    """Return where the signature of a file lies."""
    return path.with_name(path.name + SUFFIX)


def read_public_key(text: str) -> PublicKey:
    """Return a public key from a file, or from its base64 line.

    Raises:
        RecipeError: It is neither.
    """
    from minisign import Error, PublicKey

    path = Path(text)
    try:
        return PublicKey.from_file(path) if path.is_file() else PublicKey.from_base64(text)
    except (OSError, Error, ValueError) as exc:
        raise RecipeError(
            f"`{text}` is no minisign public key: {exc}", hint="give the `.pub` file or its second line"
        ) from exc


def check_signature(path: Path, key: PublicKey) -> str:
    """Check the signature that lies beside a file and return its trusted comment.

    Raises:
        ArtifactError: There is none, or it is not of this file or this key.
    """
    from minisign import Error

    signature = _read_signature(signature_of(path))
    try:
        key.verify(path.read_bytes(), signature)
    except Error as exc:
        raise ArtifactError(f"`{path}` has no valid signature: {exc}", path=str(path)) from exc
    comment: str = signature.trusted_comment
    return comment


def _read_signature(path: Path) -> Signature:
    from minisign import Error, Signature

    try:
        with path.open("rb") as stream:
            return Signature.from_bytes(stream.read(_LARGEST_BYTES))
    except FileNotFoundError as exc:
        raise ArtifactError(f"`{path.parent}` is not signed", path=str(path)) from exc
    except (OSError, Error, ValueError) as exc:
        raise ArtifactError(f"`{path}` is no signature: {exc}", path=str(path)) from exc
