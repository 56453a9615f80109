"""Rebuild the tokenizer that a GGUF describes, and prove it against llama.cpp.

transformers reads a GGUF's vocabulary into a SentencePiece-like tokenizer whatever its kind, which splits
text differently from the tokenizer that the model was trained with. A GGUF of kind `gpt2` is a byte-level
BPE: vocabulary and merges are in the file, and the name of the pre-tokenizer says how text is cut into
words first. This module builds exactly that with the `tokenizers` library and refuses names it does not
know; `check_token_ids` then compares it with llama.cpp on text that tells such tokenizers apart.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import DistillError, TokenizerMismatchError
from ammd.gguf_reader import open_gguf
from ammd.pre_tokenizer import LLAMA3_WORDS, QWEN2_WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTROL, _USER_DEFINED = 3, 4  # token types in GGUF

# Text on which byte-level tokenizers of different families differ: digits, code, scripts, white space.
PROBE_TEXTS = (
    "Hello, world! It's the year 1984; pi is 3.14159 and 1,000,000 is a lot.",
    "def f(x):\n\tif x != 0:\n        return {'a': [1, 22, 333, 4444]}  # ok\n",
    "  leading,   several    spaces \t\ttabs \n\n\n newlines   ",
    "Grüße, señor! Ça va? Привет, мир. Γειά σου. नमस्ते दुनिया. 你好，世界。こんにちは 안녕하세요 مرحبا שלום",
    "emoji 🙂🚀👩‍👩‍👧 combining e\u0301 and zero\u200bwidth — dashes… “quotes”",
    "<|im_start|>user\nWhat's up?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|> <s> </s> [INST] plain <not_a_token>",
    "",
)


def build_tokenizer(gguf_path: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a GGUF of kind `gpt2` (byte-level BPE), chat template included.

    Raises:
        DistillError: The file's tokenizer is of another kind or has an unknown pre-tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    fields = open_gguf(gguf_path).fields
    meta: dict[str, Any] = {
        name.removeprefix("tokenizer.").removeprefix("ggml."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }
    backend = _byte_level_bpe(meta, where=gguf_path)
    tokens = meta["tokens"]

    def named(key: str) -> str | None:
        token_id = meta.get(key)
        return None if token_id is None else tokens[token_id]

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=named("bos_token_id"),
        eos_token=named("eos_token_id"),
        unk_token=named("unknown_token_id"),
        pad_token=named("padding_token_id"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = meta.get("chat_template")
    return tokenizer


def check_token_ids(tokenizer: PreTrainedTokenizerBase, gguf_path: Path) -> None:
    """Check that `tokenizer` and llama.cpp give the same ids for every probe text.

    Raises:
        TokenizerMismatchError: Names the first text on which they differ, with both id lists.
        DistillError: llama.cpp cannot read the file.
    """
    for text, expected in zip(PROBE_TEXTS, _llama_token_ids(gguf_path, PROBE_TEXTS), strict=True):
        found = list(tokenizer.encode(text, add_special_tokens=False))
        if found != expected:
            raise TokenizerMismatchError(
                f"the tokenizer rebuilt from `{gguf_path.name}` splits `{text}` differently from llama.cpp",
                hint="report the file: its pre-tokenizer needs its own rule",
                expected=expected,
                found=found,
            )


def _byte_level_bpe(meta: Mapping[str, Any], *, where: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind = meta.get("model")
    if kind != "gpt2":
        raise DistillError(
            f"tokenizer kind `{kind}` of `{where}` cannot be rebuilt, only `gpt2` (byte-level BPE)",
            hint="use the model's original checkpoint (`hub:` or a folder) as the source",
        )
    merges = [tuple(merge.split(" ", 1)) for merge in meta["merges"]]
    vocabulary = {token: index for index, token in enumerate(meta["tokens"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    backend.pre_tokenizer = _pre_tokenizer(meta.get("pre"), where=where)
    backend.decoder = decoders.ByteLevel()
    for token, token_type in zip(meta["tokens"], meta["token_type"], strict=True):
        if token_type == _CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    return backend


def _pre_tokenizer(name: str | None, *, where: Path) -> Any:
    """Return the rule that cuts text into words before merging, by its name in llama.cpp."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as pre

    def split_then_bytes(pattern: str) -> Any:
        words = pre.Split(Regex(pattern), behavior="isolated")
        return pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])

    gpt2_words = pre.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre.Sequence([pre.Digits(individual_digits=True), gpt2_words])
    if name == "gpt-2":
        return gpt2_words
    if name == "llama-bpe":
        return split_then_bytes(LLAMA3_WORDS)
    if name == "qwen2":
        return split_then_bytes(QWEN2_WORDS)
    raise DistillError(
        f"pre-tokenizer `{name}` of `{where}` is not known (smollm, gpt-2, llama-bpe, qwen2 are)",
        hint="use the model's original checkpoint (`hub:` or a folder) as the source",
    )


def _llama_token_ids(gguf_path: Path, texts: tuple[str, ...]) -> list[list[int]]:
    """Tokenize with llama.cpp, special tokens parsed, nothing added; loads the vocabulary only."""
    import llama_cpp

    _silence_llama_cpp()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(gguf_path).encode(), params)
    if not model:
        raise DistillError(f"llama.cpp cannot read the vocabulary of `{gguf_path}`")
    try:
        vocab = llama_cpp.llama_model_get_vocab(model)
        return [_encode(vocab, text.encode()) for text in texts]
    finally:
        llama_cpp.llama_model_free(model)


@functools.cache
def _silence_llama_cpp() -> object:
    """Drop llama.cpp's log, a failure shows as a null model. The cache keeps the callback alive: it is not copied."""
    import ctypes

    import llama_cpp

    def silence(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
        """Say nothing."""

    callback = llama_cpp.llama_log_callback(silence)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _encode(vocab: Any, text: bytes) -> list[int]:
    import llama_cpp

    room = len(text) + 8
    ids = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), ids, room, False, True)
    return list(ids[:count])
