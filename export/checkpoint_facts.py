"""What a checkpoint's files say about themselves, read without loading a weight.

The headers of its safetensors files are enough to
estimate the size of each exported file and to refuse, before any work, a checkpoint that would convert badly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, ExportError
from ammd.safetensors_header import HEAD, is_head_tied, read_headers


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """A language model's folder, described."""

    parameters: int  # numbers stored; a tied head counts once
    embedding_weights: int  # numbers in the token embedding, vocabulary times hidden size
    largest_matrix_weights: int  # numbers in the largest tensor
    tied_head: bool  # the output matrix is the embedding matrix
    row_weights: Mapping[
        str, int
    ]  # length of the rows of each matrix, by tensor; embedding and head left out


def read_checkpoint_facts(folder: Path) -> CheckpointFacts:
    """Read the facts of a checkpoint folder and check that it can be exported at all.

    Raises:
        ArtifactError: A file that every checkpoint has is missing or damaged.
        ExportError: The config says that the head is tied, but the weights hold a head of their own.
    """
    config = read_json(folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    tensors = read_headers(folder)
    if not tensors:
        raise ArtifactError(f"`{folder}` is not a checkpoint: no `*.safetensors`", path=str(folder))
    tied = is_head_tied(config, tensors)
    if tied and HEAD in tensors:
        raise ExportError(
            f"`{folder}` says `tie_word_embeddings` but stores `{HEAD}` as well",
            hint="save it again with transformers' save_pretrained, which keeps one of the two",
        )
    return CheckpointFacts(
        parameters=sum(math.prod(entry["shape"]) for entry in tensors.values()),
        embedding_weights=int(config.get("vocab_size") or 0)
        * int(config.get("hidden_size") or config.get("d_model") or 0),
        largest_matrix_weights=max((math.prod(entry["shape"]) for entry in tensors.values()), default=0),
        tied_head=tied,
        row_weights={
            name: int(entry["shape"][1])
            for name, entry in tensors.items()
            if len(entry["shape"]) == 2
            and not name.endswith(("embed_tokens.weight", "lm_head.weight", "shared.weight"))
        },
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ArtifactError: The file is missing or does not hold a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ArtifactError(
            f"`{path.parent}` is not a checkpoint: no `{path.name}`",
            hint="give a folder that holds config.json, *.safetensors and the tokenizer files",
            path=str(path),
        ) from exc
    except ValueError as exc:
        raise ArtifactError(f"`{path}` is not JSON: {exc}", path=str(path)) from exc
    if not isinstance(document, dict):
        raise ArtifactError(f"`{path}` does not hold a JSON object", path=str(path))
    return document
