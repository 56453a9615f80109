"""Does an exported file behave as the checkpoint it was made from? One file, one child, one record.

Checked in the order in which faults build on each other: sizes, token ids, rendered chat (of an encoder-decoder without
a template, the source that a question becomes), BOS, start and end tokens; then how
far the distributions are apart on held-out text; then greedy text. Kernels of different libraries sum in
different orders, so greedy text may part where two tokens are almost equally likely. Such a place is allowed
only where the checkpoint prefers its own token to the file's by less than the largest logit error that was
measured for this file on held-out text; every place is listed with both numbers.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact_ref import asked_kind
from .divergence import Comparison, compare, load_hidden_states
from .engine import START_TOKEN, Engine, open_engine
from .model_file import ModelFile, checkpoint_facts, read_model_file
from .reference import JSON_NAME, TENSORS_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .engine import Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where a file's greedy text leaves the checkpoint's."""

    prompt: int  # number of the held-out prompt, from 0
    step: int  # token of the response, from 0
    expected: str  # the checkpoint's token
    found: str  # the file's token
    logit_gap: float  # by how much the checkpoint prefers its token to the file's
    explained: bool  # the gap is smaller than the file's largest logit error


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Compare one file with a reference. Runs in a child.

    Args:
        request: `path` of the file, `engine`, `reference` folder, `checkpoint`, `threads`.

    Returns:
        A flat record for the report; `faults` lists what disagrees, `divergences` where greedy text parts.

    Raises:
        ArtifactError: Parts of it are missing or damaged.
        EngineError: The file cannot be loaded or run.
    """
    folder = Path(request["reference"])
    facts = read_model_file(Path(request["path"]))
    checkpoint = checkpoint_facts(Path(request["checkpoint"]))
    reference = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
    longest = max(len(ids) for _, ids in reference["texts"])
    longest_greedy = max(len(row["prompt_ids"]) + len(row["ids"]) for row in reference["greedy"])
    with open_engine(
        Path(request["path"]),
        threads=request["threads"],
        context_tokens=max(longest, longest_greedy),
        kind=asked_kind(request),
    ) as engine:
        faults = [
            *check_sizes(facts, checkpoint),
            *check_token_ids(engine, reference["probes"]),
            *check_chats(engine, reference["chats"]),
            *check_bos(engine, reference),
            *check_start(engine, reference),
            *check_end_tokens(engine, reference["end_token_ids"]),
        ]
        record: dict[str, Any] = {
            "engine": engine.name,
            "bytes": facts.bytes,
            "sha256": facts.sha256,
            "token_texts": len(reference["probes"]),
            "notes": [
                *size_notes(facts, checkpoint),
                *composition_notes(engine, reference["probes"]),
                *source_notes(engine, reference),
            ],
            "chats": len(reference["chats"]),
            "end_token_ids": sorted(engine.end_token_ids),
            START_TOKEN: engine.settings.get(START_TOKEN),
        }
        if not faults:  # numbers about a file that reads its input wrongly would mean nothing
            comparison = _compare_texts(engine, reference["texts"], folder / TENSORS_NAME)
            error = comparison.max_logit_error
            record |= asdict(comparison)
            record |= compare_greedy(engine, reference["greedy"], max_logit_error=error)
        return record | {"faults": faults}


def check_sizes(found: ModelFile, expected: Mapping[str, Any]) -> list[str]:
    """Return which sizes differ from the checkpoint's; what one of both does not say is not compared."""
    faults = []
    if None not in (found.vocab_size, expected["vocab_size"]) and found.vocab_size != expected["vocab_size"]:
        faults.append(
            f"the vocabulary has {found.vocab_size} tokens, the checkpoint's {expected['vocab_size']}"
        )
    if found.tied_head and not expected["tied_head"]:
        faults.append("the output shares its matrix with the embedding, unlike the checkpoint's")
    contexts = (found.context_tokens, expected["context_tokens"])
    if None not in contexts and contexts[0] != contexts[1]:
        faults.append(f"the context has {contexts[0]} tokens, the checkpoint's {contexts[1]}")
    return faults


def size_notes(found: ModelFile, expected: Mapping[str, Any]) -> list[str]:
    """Return what makes the file larger than it has to be; it computes the same."""
    if found.tied_head is False and expected["tied_head"]:
        return ["the embedding is stored twice, although the checkpoint's output shares it"]
    return []


def check_token_ids(engine: Engine, probes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the file's token ids, one sentence for each text that differs."""
    faults = []
    for probe in probes:
        found = engine.tokenize(probe["text"])
        if found not in (probe["ids"], probe.get("trimmed_ids")) and not _only_composes(engine, probe):
            faults.append(f"token ids differ for {_quote(probe['text'])}: {_first(found, probe['ids'])}")
    return faults


def composition_notes(engine: Engine, probes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a user has to know of text with accents as characters of their own.

    Some tokenizers (Qwen's) compose them first (Unicode's NFC), llama.cpp never does. Composed text, which keyboards
    write, is read alike; so this is said, not refused.
    """
    for probe in probes:
        if engine.tokenize(probe["text"]) != probe["ids"] and _only_composes(engine, probe):
            return ["accents that are characters of their own are not composed (NFC), as the checkpoint does"]
    return []


def source_notes(engine: Engine, reference: Mapping[str, Any]) -> list[str]:
    """Return what a user has to know of an encoder-decoder's prompts.

    SentencePiece drops white space at the end of a text and in front of a special token, and so does llama.cpp for T5;
    some of transformers' tokenizers make a token of it.
    """
    notes = []
    if reference.get("is_chatless"):
        notes.append("there is no chat template: the source is the question, the end token behind it")
    for probe in reference["probes"]:
        found = engine.tokenize(probe["text"])
        if found != probe["ids"] and found == probe.get("trimmed_ids"):
            notes.append("white space at the end of a text is dropped, which the checkpoint reads as a token")
            break
    return notes


def _only_composes(engine: Engine, probe: Mapping[str, Any]) -> bool:
    composed = unicodedata.normalize("NFC", probe["text"])
    return bool(composed != probe["text"] and engine.tokenize(composed) == probe["ids"])


def check_chats(engine: Engine, chats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the file's chat template: rendered text, or the ids of that text."""
    faults = []
    for chat in chats:
        found = engine.render_chat(chat["messages"], add_generation_prompt=True)
        if found != chat["text"]:
            faults.append(f"the chat `{chat['name']}` is rendered as {_quote(found)}")
        elif engine.tokenize(found) != chat["ids"]:
            faults.append(f"the rendered chat `{chat['name']}` has other token ids")
    return faults


def check_bos(engine: Engine, reference: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with BOS: another token, missing where one belongs, or doubled."""
    bos = reference["bos_token_id"]
    faults = []
    if bos is not None and engine.bos_token_id != bos:
        faults.append(f"the BOS token is {engine.bos_token_id}, the checkpoint's {bos}")
    text = reference["probes"][0]
    expected = _leading(text["ids_with_special"], bos)
    found = _leading(engine.tokenize(text["text"], add_special=True), bos)
    if found != expected:
        faults.append(f"plain text starts with {found} BOS tokens instead of {expected}")
    for chat in reference["chats"]:
        found = _leading(engine.tokenize(chat["text"]), bos)
        if found != _leading(chat["ids"], bos) or found > 1:
            faults.append(f"the chat `{chat['name']}` starts with {found} BOS tokens")
    return faults


def check_start(engine: Engine, reference: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an encoder-decoder: the token that its target begins with, or the end of its source."""
    faults = []
    found, expected = engine.settings.get(START_TOKEN), reference.get(START_TOKEN)
    if found != expected:
        faults.append(f"the decoder begins with token {found}, the checkpoint's with {expected}")
    if expected is not None:
        text = reference["probes"][0]
        ids = engine.tokenize(text["text"], add_special=True)
        if ids != text["ids_with_special"]:
            faults.append(f"plain text is read otherwise: {_first(ids, text['ids_with_special'])}")
    return faults


def check_end_tokens(engine: Engine, end_token_ids: Sequence[int]) -> list[str]:
    """Return which of the checkpoint's end tokens would not stop the file. Further ones are allowed."""
    missing = sorted(set(end_token_ids) - engine.end_token_ids)
    if missing:
        return [f"token {missing[0]} ends a response of the checkpoint but not of the file"]
    return []


def compare_greedy(
    engine: Engine, greedy: Sequence[Mapping[str, Any]], *, max_logit_error: float
) -> dict[str, Any]:
    """Decode each prompt greedily until it parts from the checkpoint's text, and judge the place.

    Args:
        engine: The file.
        greedy: The checkpoint's responses with its best tokens and logits at each step.
        max_logit_error: The file's largest logit error on held-out text.
    """
    divergences = []
    for number, row in enumerate(greedy):
        step, found = _first_divergence(engine, row["prompt_ids"], row["ids"])
        if found is None:
            continue
        gap = _logit_gap(row["best_ids"][step], row["best_logits"][step], found)
        divergences.append(
            Divergence(
                prompt=number,
                step=step,
                expected=_token_text(engine, row["ids"][step]),
                found=_token_text(engine, found),
                logit_gap=gap,
                explained=gap < max_logit_error,
            )
        )
    return {
        "greedy_prompts": len(greedy),
        "greedy_tokens": sum(len(row["ids"]) for row in greedy),
        "greedy_equal": len(greedy) - len(divergences),
        "greedy_shortest_prefix": min(
            [divergence.step for divergence in divergences] or [len(row["ids"]) for row in greedy]
        ),
        "greedy_stops": sum(row["ids"][-1] in engine.end_token_ids for row in greedy),
        "divergences": [asdict(divergence) for divergence in divergences],
    }


def _compare_texts(engine: Engine, texts: Sequence[Sequence[Any]], path: Path) -> Comparison:
    def rows() -> Iterator[Logits]:
        for prompt, ids in texts:
            # Logits after token t predict token t + 1, so the last token's predict nothing here.
            yield from engine.logits(ids[:-1], start=prompt - 1)

    targets = [token for prompt, ids in texts for token in ids[prompt:]]
    return compare(load_hidden_states(path), rows(), targets)


def _first_divergence(
    engine: Engine, prompt_ids: Sequence[int], expected: Sequence[int]
) -> tuple[int, int | None]:
    """Return the first step at which the file takes another token, and that token; None if none does."""
    logits = engine.prefill(prompt_ids)
    for step, token in enumerate(expected):
        found = int(logits.argmax())
        if found != token:
            return step, found
        if step + 1 < len(expected):
            logits = engine.decode(token)
    return len(expected), None


def _logit_gap(best_ids: Sequence[int], best_logits: Sequence[float], found: int) -> float:
    """Return how much less the checkpoint likes `found` than its best token.

    A token outside the best few is at least as far away as the last of them.
    """
    place = best_ids.index(found) if found in best_ids else len(best_ids) - 1
    return best_logits[0] - best_logits[place]


def _leading(token_ids: Sequence[int], bos: int | None) -> int:
    count = 0
    while bos is not None and count < len(token_ids) and token_ids[count] == bos:
        count += 1
    return count


def _token_text(engine: Engine, token_id: int) -> str:
    return engine.detokenize([token_id]) or f"<{token_id}>"


def _first(found: Sequence[int], expected: Sequence[int]) -> str:
    """Describe the first place at which two sequences differ."""
    for index, (left, right) in enumerate(zip(found, expected, strict=False)):
        if left != right:
            return f"token {index} is {left} instead of {right}"
    return f"{len(found)} tokens instead of {len(expected)}"


def _quote(text: str) -> str:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return repr(shown)
