"""Conversations from JSONL, rendered through a model's own chat template.

One JSON object a line, in one of three forms:

    {"prompt": "..."}                                   without a response
    {"prompt": "...", "response": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}     the last one may be the assistant's response
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .json_lines import check_unicode, read_objects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One line of a data file: messages up to the user's last, and the response where the file has one."""

    messages: tuple[Message, ...]
    response: str | None
    line: int  # in the file, from 1

    @property
    def prompt(self) -> str:
        """The user's last message, to show to people."""
        return self.messages[-1]["content"]


def read_conversations(path: Path) -> list[Conversation]:
    """Read a JSONL file of prompts; blank lines are skipped.

    Raises:
        DataError: The file is missing, empty, or a line is malformed (named by its number).
    """
    found = [_parse(row, f"`{path}` line {number}", number) for number, row in read_objects(path)]
    if not found:
        raise DataError(f"`{path}` holds no prompts", hint='one JSON object a line: {"prompt": "..."}')
    return found


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the ids of the rendered messages with the generation prompt at the end.

    Without a chat template, a tokenizer that ends every text itself is an encoder-decoder's (T5): its source is the
    user's message, behind a system message and a blank line where there is one, and the end token.

    Raises:
        DataError: The tokenizer has no chat template and is none of those, or there are several turns without one.
    """
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ends_texts(tokenizer):
        raise DataError("the model has no chat template", hint="use an instruction-tuned model")
    return tuple(tokenizer.encode(source_text(messages)))


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer puts the end token behind every text and nothing before it, as encoders expect."""
    return tokenizer.eos_token_id is not None and list(tokenizer.encode("")) == [tokenizer.eos_token_id]


def source_text(messages: Sequence[Message]) -> str:
    """Return the text that an encoder-decoder without chat template reads.

    Raises:
        DataError: There are several turns, which it has no form for.
    """
    *system, last = messages
    if any(message["role"] != "system" for message in system):
        raise DataError(
            f"a model without chat template answers one message, not a conversation of {len(messages)}",
            hint="keep the last user message alone, or write what came before into it",
        )
    return "\n\n".join(message["content"] for message in (*system, last))


def encode_response(
    tokenizer: PreTrainedTokenizerBase, text: str, *, max_tokens: int | None
) -> tuple[int, ...]:
    """Return the ids of a given response, end token included unless it had to be cut at `max_tokens`."""
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return tuple(ids[:max_tokens])


def _parse(row: dict[str, Any], where: str, number: int) -> Conversation:
    if "messages" in row:
        return _from_messages(row["messages"], where, number)
    prompt, response = row.get("prompt"), row.get("response")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where} has no `prompt` text and no `messages`", line=number)
    if response is not None and not isinstance(response, str):
        raise DataError(f"{where} has a `response` that is not text", line=number)
    _check_not_empty(response, where, number)
    check_unicode((prompt, response or ""), where, number)
    return Conversation(messages=({"role": "user", "content": prompt},), response=response, line=number)


def _from_messages(messages: object, where: str, number: int) -> Conversation:
    ok = isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )
    if not ok or not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: `messages` is not a list of role and content", line=number)
    check_unicode([text for message in messages for text in message.values()], where, number)
    response = None
    if messages[-1]["role"] == "assistant":
        response = messages[-1]["content"]
        messages = messages[:-1]
        _check_not_empty(response, where, number)
    if not messages or messages[-1]["role"] != "user":
        raise DataError(f"{where}: `messages` has no user message to answer", line=number)
    kept = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return Conversation(messages=kept, response=response, line=number)


def _check_not_empty(response: str | None, where: str, number: int) -> None:
    if response is not None and not response.strip():
        raise DataError(
            f"{where} has an empty response, from which a student learns to say nothing",
            hint="leave the response out to let the teacher write one, or drop the line",
            line=number,
        )
