"""A model file as a model of lm-evaluation-harness: the harness asks, our engines answer.

Requests become token ids as in the harness's own Hugging Face backend, so that the two agree request by request:
context and continuation are tokenized together and divided where the context's own tokens end, blanks at the end of a
context belong to the continuation, what does not fit is cut off on the left, and a text that begins with the BOS token
gets no second one. An encoder-decoder's context is its source, end token included, and tokenized apart from what
follows. Importing this module makes the model known to the harness, as `ammd`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import DEFAULT_MAX_LENGTH, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ammd.errors import EngineError, RecipeError
from ammd.machine import available_cores
from ammd.progress import progress

from .artifact_ref import EngineKind, choose_kind
from .engine import START_TOKEN, Engine, open_engine
from .generate import Ends, generate
from .likelihood import first_ids, score_continuations
from .model_file import read_model_file
from .sampling import Sampling
from .torch_engine import TorchEngine

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    Scored = tuple[float, bool]  # log-probability in nats, and whether greedy decoding would have written it

_FIRST_CONTEXT_TOKENS = 2048  # until a request needs more; memory for a context is taken at once
_SEEDS = 2**31
_HANDED_OVER = {"batch_size", "max_batch_size", "device"}  # to every model, whatever the user asked for
_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
_log = logging.getLogger(__name__)


@register_model("ammd")
class EngineLM(TemplateLM):  # type: ignore[misc]
    """A GGUF, an ONNX folder or a checkpoint folder behind the harness's interface."""

    def __init__(
        self,
        pretrained: str | Path,
        *,
        engine: str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool = True,
        prefix_token_id: int | None = None,
        **handed_over: object,
    ) -> None:
        """Load the model. Arguments that the Hugging Face backend has too are named as there.

        Args:
            pretrained: The file or folder.
            engine: As for `ammd eval --engine`; None for the one that the form of the file calls for.
            threads: CPU threads; None for all cores that this process may use.
            max_length: Longest sequence in tokens; None for what the model was made for.
            max_gen_toks: Longest answer where a task does not say.
            add_bos_token: Let the tokenizer add the special tokens that it adds by itself.
            prefix_token_id: What an empty context is; None for the BOS token, or an end token where there is none.
            handed_over: What the harness gives every model. Engines have one sequence at a time and run on the CPU.

        Raises:
            RecipeError: An argument is unknown, or names no engine.
            ArtifactError: No model is there, or a file of it is missing or damaged.
            EngineError: The engine cannot load it.
        """
        super().__init__()
        _refuse_unknown(handed_over.keys() - _HANDED_OVER)
        if str(handed_over.get("batch_size", 1)) != "1":
            _log.warning(
                "engines read one sequence at a time: a batch size of %(batch_size)s changes nothing",
                handed_over,
            )
        self._path = Path(pretrained)
        self._kind = choose_kind(self._path, _engine_kind(engine))
        self._threads = threads or available_cores()
        self._file = read_model_file(self._path)
        self.max_length = max_length or self._file.context_tokens or DEFAULT_MAX_LENGTH
        self.max_gen_toks = max_gen_toks
        self._add_bos_token = add_bos_token
        self._engine = self._open(min(self.max_length, _FIRST_CONTEXT_TOKENS))
        self.backend = "seq2seq" if START_TOKEN in self._engine.settings else "causal"
        self._prefix = first_ids(self._engine) if prefix_token_id is None else [prefix_token_id]

    @property
    def eot_token_id(self) -> int:
        """See `prefix_token_id`: nothing else asks for it."""
        return self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context.

        Raises:
            EngineError: The model has neither BOS nor end tokens.
        """
        if not self._prefix:
            raise EngineError(
                f"`{self._path}` has neither a BOS token nor an end token",
                hint="say with `--model_args prefix_token_id=ID` what an empty context is",
            )
        return self._prefix[0]

    @property
    def tokenizer_name(self) -> str:
        """A name that no other file shares, for the harness's cache of requests."""
        return f"ammd-{self._file.sha256[:16]}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_options: object
    ) -> list[int]:
        """Return token ids; None adds special tokens as the model was told, unless the text has them."""
        bare = self._engine.tokenize(string)
        if add_special_tokens is None:
            add_special_tokens = self._add_bos_token and bare[:1] != self._prefix
        return self._engine.tokenize(string, add_special=True) if add_special_tokens else bare

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return what the template makes of one message, to be kept with the results; None without a template.

        Raises:
            RecipeError: A template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise RecipeError(
                f"cannot choose the chat template `{chat_template}`",
                hint="a file has one: give `--apply_chat_template` without a name",
            )
        return self.apply_chat_template([{"role": "user", "content": "{content}"}]) if chat_template else None

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text; without a generation prompt, up to the end of the last message's own text.

        Where the template refuses a system message, it is left out, as by the Hugging Face backend.

        Raises:
            EngineError: The file has no template, or it refuses these messages.
        """
        messages = list(chat_history)
        try:
            text = self._engine.render_chat(messages, add_generation_prompt=add_generation_prompt)
        except EngineError:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise
            _log.warning("the chat template refuses the system message, which is left out")
            text = self._engine.render_chat(others, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else _through_last(text, messages[-1]["content"])

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_options: object) -> list[float]:
        """Return the log-probability of each whole text, in nats, read in windows of `max_length`."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        scored = iter(self._loglikelihood_tokens([one for of_text in windows for one in of_text]))
        totals = [sum(next(scored)[0] for _ in of_text) for of_text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], **_options: object) -> list[str]:
        """Return each answer. Draws come from NumPy's global seed, which the harness sets from `--seed`."""
        import numpy as np

        asked = [request.args for request in requests]
        seeds = np.random.randint(_SEEDS, size=len(asked)).tolist()
        plans = [
            read_generation(settings, default_tokens=self.max_gen_toks, seed=seed)
            for (_, settings), seed in zip(asked, seeds, strict=True)
        ]
        prompts = [
            self._prompt(context, answer_tokens=ends.max_new_tokens)
            for (context, _), (_, ends) in zip(asked, plans, strict=True)
        ]
        lengths = [
            len(prompt) + ends.max_new_tokens for prompt, (_, ends) in zip(prompts, plans, strict=True)
        ]
        engine = self._with_room(max(lengths, default=0))
        answers: list[str] = []
        with progress("answers", len(asked)) as report:
            for request, prompt, (sampling, ends) in zip(asked, prompts, plans, strict=True):
                pieces = generate(engine, prompt, sampling=sampling, ends=ends)
                answers.append("".join(piece.text for piece in pieces))
                self.cache_hook.add_partial("generate_until", request, answers[-1])
                report(len(answers))
        return answers

    def get_model_info(self) -> dict[str, object]:
        """Return what the harness keeps with the results."""
        return {
            "model_sha256": self._file.sha256,
            "model_bytes": self._file.bytes,
            "model_engine": self._engine.name,
            "model_engine_settings": dict(self._engine.settings),
        }

    def close(self) -> None:
        """Release the model."""
        self._engine.close()

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        **_options: object,
    ) -> list[Scored]:
        """Return each continuation's log-probability; continuations of one context are read together."""
        fitted = [self._fit(context, continuation) for _, context, continuation in requests]
        engine = self._with_room(max((len(one) + len(other) - 1 for one, other in fitted), default=0))
        order = sorted(range(len(fitted)), key=lambda place: (-len(fitted[place][0]), fitted[place][0]))
        found: dict[int, Scored] = {}
        with progress("log-likelihoods", len(requests)) as report:
            for context, group in groupby(order, key=lambda place: fitted[place][0]):
                places = list(group)
                scored = score_continuations(engine, context, [fitted[place][1] for place in places])
                for place, one in zip(places, scored, strict=True):
                    found[place] = (one.logprob, one.is_greedy)
                    if text := requests[place][0]:
                        self.cache_hook.add_partial("loglikelihood", text, found[place])
                report(len(found))
        return [found[place] for place in range(len(requests))]

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Return both with the context cut on the left; the last token is predicted and need not be read.

        Raises:
            EngineError: There is no continuation, or it does not fit even alone.
        """
        if not 1 <= len(continuation) <= self.max_length:
            raise EngineError(
                f"cannot score a continuation of {len(continuation)} tokens in a context of {self.max_length}",
                hint="`--model_args max_length=N` makes the context longer; an empty continuation has no tokens "
                "of its own once it is tokenized with its context",
            )
        beside = 0 if self.backend == "seq2seq" else len(continuation) - 1
        return (context or [self.prefix_token_id])[-(self.max_length - beside) :], continuation

    def _prompt(self, context: str, *, answer_tokens: int) -> list[int]:
        """Return a prompt's token ids, cut on the left.

        Raises:
            EngineError: The answer alone fills the context.
        """
        room = self.max_length - (0 if self.backend == "seq2seq" else answer_tokens)
        if room < 1:
            raise EngineError(
                f"an answer of {answer_tokens} tokens fills the context of {self.max_length}",
                hint="ask for fewer with `--gen_kwargs max_gen_toks=N`",
            )
        return self.tok_encode(context)[-room:] or [self.prefix_token_id]

    def _with_room(self, tokens: int) -> Engine:
        """Return the engine, opened anew where its context is too short for so many tokens."""
        if tokens > self._engine.context_tokens:
            self._engine.close()
            self._engine = self._open(tokens)
        return self._engine

    def _open(self, context_tokens: int) -> Engine:
        engine = open_engine(
            self._path, threads=self._threads, context_tokens=context_tokens, kind=self._kind
        )
        if isinstance(engine, TorchEngine):
            engine.pack()
        return engine


def read_generation(settings: Mapping[str, Any], *, default_tokens: int, seed: int) -> tuple[Sampling, Ends]:
    """Return how tokens are drawn and where the answer ends, from a request's `gen_kwargs`.

    Raises:
        RecipeError: A setting has no meaning here, or a value none at all.
    """
    known = dict(normalize_gen_kwargs(dict(settings), default_tokens))
    stops = tuple(stop for stop in known.pop("until") if stop)
    ends = Ends(max_new_tokens=known.pop("max_gen_toks"), stop_strings=stops)
    is_drawn = known.pop("do_sample")
    beams = known.pop("num_beams", 1)
    if beams != 1 or known.keys() - _SAMPLING:
        names = sorted(known.keys() - _SAMPLING) + (["num_beams"] if beams != 1 else [])
        raise RecipeError(
            f"cannot generate with `{'`, `'.join(names)}`",
            hint=f"engines know until, max_gen_toks, do_sample, {', '.join(sorted(_SAMPLING))}",
        )
    if not is_drawn:
        known["temperature"] = 0.0
    return Sampling(**known, seed=seed), ends


def _refuse_unknown(names: set[str]) -> None:
    if names:
        raise RecipeError(
            f"unknown in `--model_args`: {', '.join(sorted(names))}",
            hint="known are engine, threads, max_length, max_gen_toks, add_bos_token, prefix_token_id",
        )


def _engine_kind(name: str | None) -> EngineKind | None:
    try:
        return EngineKind(name) if name else None
    except ValueError as exc:
        known = ", ".join(kind.value for kind in EngineKind)
        raise RecipeError(f"no engine `{name}`", hint=f"engines: {known}") from exc


def _through_last(text: str, content: str) -> str:
    """Return a rendered chat up to the end of its last message; templates may trim what they are given."""
    start = text.rindex(content.strip())
    whole = content.lstrip()
    end = start + len(whole if text[start:].startswith(whole) else content.strip())
    return text[:end]
