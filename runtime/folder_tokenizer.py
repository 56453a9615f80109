"""The tokenizer and chat template that lie beside a graph, read without transformers.

`tokenizer.json` is what transformers' fast tokenizers themselves run; what they add on top (the names of special
tokens, the template) stands in `tokenizer_config.json` and `chat_template.jinja`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, EngineError

from .chat_template import render_chat_template
from .onnx_folder import read_json


class FolderTokenizer:
    """A folder's tokenizer with its special tokens and its chat template."""

    def __init__(self, folder: Path) -> None:
        """Read the files.

        Raises:
            ArtifactError: There is no tokenizer, or it is damaged.
        """
        self._folder = folder
        self._backend: Any = _load(folder / "tokenizer.json")
        path = folder / "tokenizer_config.json"
        config = read_json(path) if path.is_file() else {}
        self._special = _special_tokens(config)
        self._template = _template(folder, config)

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token by its name in `tokenizer_config.json`, as `bos_token`."""
        token_id: int | None = self._backend.token_to_id(self._special.get(name, ""))
        return token_id

    def special_text(self, name: str) -> str:
        """Return how a special token is written; empty where there is no such token."""
        return self._special.get(name, "")

    @property
    def has_template(self) -> bool:
        """Whether the folder says how a chat is written."""
        return self._template is not None

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return token ids; special tokens in `text` are recognised."""
        return list(self._backend.encode(text, add_special_tokens=add_special).ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids` without special tokens."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=True))

    def text_stream(self) -> Callable[[int], str]:
        """Return a function from one token after another to the text that is complete."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token_id: stream.step(self._backend, token_id) or ""

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the chat as text.

        Raises:
            EngineError: The folder has no template, or it refuses these messages.
        """
        if self._template is None:
            raise EngineError(
                f"`{self._folder}` stores no chat template",
                hint="put the checkpoint's chat_template.jinja beside the graph",
            )
        return render_chat_template(
            self._template,
            messages,
            special_tokens=self._special,
            add_generation_prompt=add_generation_prompt,
        )


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise ArtifactError(
            f"`{path.parent}` has no tokenizer.json",
            hint="put the checkpoint's tokenizer files beside the graph",
            path=str(path),
        )
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as exc:  # tokenizers raises no class of its own
        raise ArtifactError(f"`{path}` is no tokenizer: {exc}", path=str(path)) from exc
    # Training tools leave these on; a prompt is neither cut nor filled up.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that have a name, as `{"bos_token": "<s>"}`; some writers put objects there."""
    found = {}
    for name, token in config.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the template of its own file, else the one inside the configuration."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
