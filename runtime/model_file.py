"""What a model's files say of themselves, read without an engine: sizes, ties, and whether all of it is there.

Engines differ in what they notice: a truncated external-data file ends some with a crash and passes others with
weights of zero. So the files are looked at first, whoever wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ammd.artifact import whole_record
from ammd.errors import ArtifactError
from ammd.gguf_reader import GGUF_DAMAGES, open_gguf
from ammd.safetensors_header import is_head_tied, read_headers

from .artifact_ref import EngineKind, detect_kind
from .onnx_folder import DECODER, ENCODER, NEXT, has_encoder, read_json, read_onnx_folder
from .onnx_tie import is_tied


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A GGUF, an ONNX folder or a checkpoint. None where the files do not say."""

    bytes: int
    sha256: str  # of the file, or of a folder's files with their names
    vocab_size: int | None
    context_tokens: int | None  # that the model was made for
    tied_head: bool | None  # the output matrix is the embedding matrix


def read_model_file(path: Path) -> ModelFile:
    """Read the facts of a model, and check that its files are complete.

    Raises:
        ArtifactError: No model is there, or a file of it is missing, damaged or shorter than its header says.
    """
    kind = detect_kind(path)
    if kind is EngineKind.LLAMA_CPP:
        facts = _gguf_facts(path)
    elif kind in (EngineKind.ONNX_GENAI, EngineKind.ONNX_RUNTIME):
        facts = _onnx_facts(path)
    else:
        facts = checkpoint_facts(path)
    whole = whole_record(path)
    return ModelFile(bytes=whole.bytes, sha256=whole.sha256, **facts)


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """Return vocabulary, context and tie of a checkpoint, as its configuration has them.

    Raises:
        ArtifactError: Its configuration or its weights cannot be read.
    """
    config = read_json(folder / "config.json")
    return {
        "vocab_size": config.get("vocab_size"),
        "context_tokens": config.get("max_position_embeddings"),
        "tied_head": is_head_tied(config, read_headers(folder)),
    }


def _gguf_facts(path: Path) -> dict[str, Any]:

    try:
        reader = open_gguf(path)
        tensors = {str(tensor.name): tensor for tensor in reader.tensors}
        architecture = reader.fields["general.architecture"].contents()
        context = reader.fields.get(f"{architecture}.context_length")
        return {
            "vocab_size": int(tensors["token_embd.weight"].shape[1]),
            "context_tokens": int(context.contents()) if context else None,
            "tied_head": "output.weight" not in tensors,
        }
    except GGUF_DAMAGES as exc:
        raise ArtifactError(
            f"`{path}` is damaged or no language model in GGUF: {exc}",
            hint="fetch or export it again",
            path=str(path),
        ) from exc


def _onnx_facts(folder: Path) -> dict[str, Any]:
    described = read_onnx_folder(folder)
    names = (ENCODER, DECODER, NEXT) if has_encoder(folder) else (described.graph.name,)
    graphs = {name: _read_graph(described.graph.with_name(name)) for name in names}
    return {
        "vocab_size": described.vocab_size,
        "context_tokens": described.context_tokens,
        "tied_head": is_tied(graphs[described.graph.name]),
    }


def _read_graph(path: Path) -> Any:
    """Return the graph after checking that all weights that lie outside of it are there."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as exc:
        raise ArtifactError(f"`{path}` cannot be read as ONNX: {exc}", path=str(path)) from exc
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            _check_place(path, tensor.name, place)
    return graph


def _check_place(graph: Path, tensor: str, place: dict[str, str]) -> None:
    name = PurePosixPath(place.get("location", "").replace("\\", "/"))
    if not name.parts or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise ArtifactError(
            f"`{graph}` keeps `{tensor}` in `{name}`, which is no path below its own folder",
            hint="a phone finds weights only beside the graph",
            path=str(graph),
        )
    data = graph.parent / name
    if not data.is_file():
        raise ArtifactError(f"`{graph}` keeps `{tensor}` in `{name}`, which is not there", path=str(data))
    end = int(place.get("offset", 0)) + int(place.get("length", 0))
    if end > data.stat().st_size:
        raise ArtifactError(
            f"`{data}` is cut off: `{tensor}` ends at byte {end}, the file at {data.stat().st_size}",
            hint="fetch or export it again",
            path=str(data),
            expected=end,
            found=data.stat().st_size,
        )
