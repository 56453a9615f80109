"""What a model of a run says to a template's prompts; kept, so that a second comparison asks nobody.

The key is what decides the answers: the model's bytes, the prompts, the longest answer, and the libraries' versions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammd.artifact import hash_text, whole_record, write_json
from ammd.machine import available_cores, library_versions
from ammd.runtime.child import call

from .template import Template

log = logging.getLogger("ammd.pipeline")
Answers = list[Mapping[str, Any]]  # one a prompt: `ids`, `text`, `ended`


def answers_of(path: Path, template: Template, *, cache: Path) -> Answers:
    """Return a model's likeliest answer to each prompt.

    Args:
        path: The model.
        template: With the prompts.
        cache: Folder of what was answered before.

    Raises:
        ArtifactError: There is no such model.
        EngineError: It cannot be loaded or run, or has no chat template.
    """
    chats = [prompt.chat for prompt in template.prompts]
    document = {
        "model": whole_record(path).sha256,
        "chats": chats,
        "max_tokens": template.max_tokens,
        "versions": library_versions(),
    }
    kept = cache / f"{hash_text(json.dumps(document, sort_keys=True))}.json"
    if (found := _read(kept, count=len(chats))) is not None:
        return found
    log.info("%s answers %d prompts …", path.name, len(chats))
    request = {
        "path": str(path),
        "chats": chats,
        "max_tokens": template.max_tokens,
        "threads": available_cores(),
    }
    answers: Answers = call("prompted:answer_chats", request)["answers"]
    cache.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"answers": answers})
    return answers


def _read(path: Path, *, count: int) -> Answers | None:
    """Return kept answers; None where there are none, or the file is damaged."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
        whole = len(answers) == count and all(
            isinstance(one["text"], str) and isinstance(one["ended"], bool) for one in answers
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return list(answers) if whole else None
