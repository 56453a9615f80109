"""What the proofs compare an exported file with, taken from the checkpoint by torch in float32.

Runs in a child of its own: the files are then opened in processes that never import torch. It leaves two
files: `reference.json` (token ids, rendered chats, end tokens, greedy text with the best logits at each step)
and `reference.safetensors` (hidden states at the response positions of held-out texts, and the unembedding
matrix, from which the exact logits are recomputed).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from . import torch_batch, torch_engine
from .chat_template import render_source
from .engine import START_TOKEN
from .heldout import HeldOut, is_prepared, load_heldout

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

JSON_NAME = "reference.json"
TENSORS_NAME = "reference.safetensors"
BEST_LOGITS = 8  # kept at each greedy step: enough to find the token that a file takes instead

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I've said so; they'll agree!",
    "Numbers: 0 7 42 365 1999 31415926 1,234,567.89 -0.5e-10 0x7f 2026-01-31 12:34:56",
    'def f(x):\n\treturn {"a": [x ** 2, x != 3]}  # note\n\n\nclass A:\n    pass\r\n',
    "  two   three    four\t\ttabs \n \n\n newlines   ",
    "Größe Übermut ß naïve café façade señor Ærøskøbing Łódź Čeština ğüş",
    "Привет, мир! Съешь ещё этих мягких булок. Ελληνικά, γεια σου.",
    "你好，世界。日本語のテキスト、カタカナ。한국어 문장입니다.",
    "مرحبا بالعالم ١٢٣ שלום עולם हिन्दी में लिखा ไทยภาษา",
    "emoji 😀 👩‍👩‍👧‍👦 🇩🇪 ✓ ½ ² ∑ → … \u201cquotes\u201d – dash \u00a0 nbsp e\u0301 combining",
    "https://example.org/a?b=c&d=%20e#f user@example.com C:\\path\\file.txt <b>bold</b> &amp;",
)
"""Text on which ids must agree: digits, code, whitespace, scripts, emoji, punctuation."""

PROBE_CHATS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "one turn": [{"role": "user", "content": "What is 2 + 2? Ünïcode \"quotes\" <tags> & 'more'."}],
    "several turns": [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "Name a colour.\n\nThen another."},
    ],
    "system": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is water wet?"},
    ],
    "empty system": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}],
}


def build(request: Mapping[str, Any]) -> dict[str, object]:
    """Write the reference of a checkpoint. Runs in a child.

    Args:
        request: `checkpoint`, `heldout`, `folder` as paths; `texts`, `greedy_prompts`, `greedy_tokens`,
            `threads` as numbers.

    Raises:
        EngineError: The checkpoint cannot be loaded, or scales its logits after the unembedding.
        ArtifactError: The held-out file cannot be read.
    """
    import torch

    from ammd.encoder_decoder import is_encoder_decoder, start_token_id

    torch.set_num_threads(request["threads"])
    checkpoint, folder = Path(request["checkpoint"]), Path(request["folder"])
    model = torch_engine.load_model(checkpoint)
    tokenizer = torch_engine.load_tokenizer(checkpoint)
    ends = torch_engine.end_token_ids(model, tokenizer)
    heldout, limit = Path(request["heldout"]), max(request["texts"], request["greedy_prompts"])
    if is_prepared(heldout):
        rows = load_heldout(heldout, limit=limit)
    else:
        rows = _answered(heldout, model, tokenizer, ends, limit=limit, tokens=request["greedy_tokens"])
    save_hidden_states(model, rows[: request["texts"]], path=folder / TENSORS_NAME)
    start = start_token_id(model) if is_encoder_decoder(model) else None
    is_chatless = start is not None and not tokenizer.chat_template
    document = {
        START_TOKEN: start,
        "is_chatless": is_chatless,
        "bos_token_id": tokenizer.bos_token_id,
        "end_token_ids": sorted(ends),
        "probes": _probe_ids(tokenizer, is_source=start is not None),
        "chats": _probe_chats(tokenizer, is_chatless=is_chatless),
        "texts": [[len(row.prompt_ids), list(row.token_ids)] for row in rows[: request["texts"]]],
        "greedy": _greedy(
            model,
            [row.prompt_ids for row in rows[: request["greedy_prompts"]]],
            max_new_tokens=request["greedy_tokens"],
            ends=ends,
        ),
    }
    (folder / JSON_NAME).write_text(json.dumps(document), encoding="utf-8")
    return {}


def _answered(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    *,
    limit: int,
    tokens: int,
) -> tuple[HeldOut, ...]:
    """Return prompts with the responses that the file gives; where it gives none, with the model's own greedy ones."""
    from ammd.batch_decoding import decode_batch
    from ammd.conversations import encode_response, read_conversations, render_prompt

    items = read_conversations(path)[:limit]
    prompts = [render_prompt(tokenizer, item.messages) for item in items]
    bare = [row for row, item in enumerate(items) if item.response is None]
    written, _ = (
        decode_batch(
            model,
            [prompts[row] for row in bare],
            max_new_tokens=tokens,
            end_token_ids=ends,
            choose=lambda logits, _rows: logits.argmax(-1),
        )
        if bare
        else ([], None)
    )
    own = dict(zip(bare, written, strict=True))
    ids = [
        tuple(own[row])
        if item.response is None
        else encode_response(tokenizer, item.response, max_tokens=tokens)
        for row, item in enumerate(items)
    ]
    return tuple(
        HeldOut(
            prompt=item.prompt,
            response=torch_engine.decode_text(tokenizer, list(response)),
            prompt_ids=prompt,
            response_ids=response,
            reference=item.response,
        )
        for item, prompt, response in zip(items, prompts, ids, strict=True)
    )


def save_hidden_states(model: PreTrainedModel, rows: Sequence[HeldOut], *, path: Path) -> None:
    """Save final hidden states [N, H] at the response positions and the unembedding [V, H], float32.

    Raises:
        EngineError: The model's logits are not hidden states times unembedding (a scale, a soft cap).
    """
    import torch
    from safetensors.torch import save_file

    unembedding = model.get_output_embeddings().weight
    kept = [_states(model, row).float() for row in rows]
    check_plain_head(model, rows[-1])
    save_file(
        {"hidden": torch.cat(kept).contiguous(), "unembedding": unembedding.detach().float().contiguous()},
        path,
    )


def _states(model: PreTrainedModel, row: HeldOut) -> Tensor:
    """Return the final hidden states [T, H] that predict a text's response."""
    [(_, states)] = torch_batch.response_states(model, [(row.prompt_ids, row.response_ids)])
    return states


def check_plain_head(model: PreTrainedModel, row: HeldOut) -> None:
    """Check on one text that a model's logits are its hidden states times its unembedding.

    Raises:
        EngineError: They are not (a scale, a soft cap).
    """
    import torch

    from ammd.encoder_decoder import is_encoder_decoder, start_token_id

    if is_encoder_decoder(model):
        target = [start_token_id(model), *row.response_ids[:-1]]
        read, options = {"input_ids": row.prompt_ids, "decoder_input_ids": target}, {}
    else:
        read, options = {"input_ids": row.token_ids[:-1]}, {"logits_to_keep": 1}
    with torch.inference_mode():
        recomputed = _states(model, row)[-1] @ model.get_output_embeddings().weight.T
        ids = {name: torch.tensor([list(ids)]) for name, ids in read.items()}
        logits = model(**ids, **options, use_cache=False).logits[0, -1]
    # The same numbers summed in another order: 1e-3 is far above rounding and far below a scale or cap.
    if not torch.allclose(recomputed, logits, rtol=1e-3, atol=1e-3):
        raise EngineError(
            f"`{type(model).__name__}` changes its logits after the unembedding, which is not supported"
        )


def _probe_ids(tokenizer: PreTrainedTokenizerBase, *, is_source: bool) -> list[dict[str, object]]:
    special = "".join(f"a{token} b{token}\n" for token in tokenizer.all_special_tokens)
    probes: list[dict[str, object]] = []
    for text in (*PROBE_TEXTS, special):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids_with_special = list(tokenizer(text, add_special_tokens=True)["input_ids"])
        probe: dict[str, object] = {"text": text, "ids": ids, "ids_with_special": ids_with_special}
        probes.append(probe | ({"trimmed_ids": _trimmed(tokenizer, ids)} if is_source else {}))
    return probes


def _trimmed(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Return ids without the white space at the end of the text and in front of special tokens."""
    space = tokenizer.convert_tokens_to_ids("▁")
    following = (*ids[1:], tokenizer.eos_token_id)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # which characters become, too
    return [
        token
        for token, next_token in zip(ids, following, strict=True)
        if token != space or next_token not in special
    ]


def _probe_chats(tokenizer: PreTrainedTokenizerBase, *, is_chatless: bool = False) -> list[dict[str, object]]:
    """Render each chat; one that the template refuses (no system turns, say) has no text.

    An encoder-decoder without a template reads the last question as its source.
    """
    rendered: list[dict[str, object]] = []
    for name, messages in PROBE_CHATS.items():
        try:
            text = (
                render_source(messages, end_token=str(tokenizer.eos_token))
                if is_chatless
                else torch_engine.render_chat(tokenizer, messages, add_generation_prompt=True)
            )
        except EngineError:
            continue
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        rendered.append({"name": name, "messages": messages, "text": text, "ids": ids})
    return rendered


def _greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: frozenset[int],
) -> list[dict[str, object]]:
    """Return each prompt's greedy response with the best tokens and their logits at every step."""
    from ammd.batch_decoding import decode_batch

    best_ids: list[list[list[int]]] = [[] for _ in prompts]  # [prompt][step][BEST_LOGITS]
    best_logits: list[list[list[float]]] = [[] for _ in prompts]

    def choose(logits: Tensor, rows: Tensor) -> Tensor:
        best = logits.topk(BEST_LOGITS, dim=-1)
        for row, ids, values in zip(rows.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
            best_ids[row].append(ids)
            best_logits[row].append(values)
        return best.indices[:, 0]

    responses, _ = decode_batch(
        model, prompts, max_new_tokens=max_new_tokens, end_token_ids=ends, choose=choose
    )
    return [
        {
            "prompt_ids": list(prompts[row]),
            "ids": response,
            "best_ids": best_ids[row][: len(response)],
            "best_logits": best_logits[row][: len(response)],
        }
        for row, response in enumerate(responses)
    ]
