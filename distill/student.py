"""The student before training: another model, or the teacher with fewer and narrower layers.

Layers go first, then attention heads, then feed-forward channels. Each cut is chosen on the network that the cuts
before it have left, by one forward pass over the same texts: what a layer adds depends on what stands before it. So an
encoder's layers go before its decoder's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ammd.encoder_decoder import is_encoder_decoder
from ammd.errors import DistillError, TokenizerMismatchError

from .batches import Batch, TokenPair, build_batch
from .checkpoint import load_model, load_tokenizer, save_checkpoint
from .depth import Stack, block_influence, check_layers, cut_layers, kept_layers, layers_of
from .row_lengths import K_BLOCK_WEIGHTS, fallback_rows, length_warnings, nearest_multiples
from .source import materialize
from .staged import KEPT_KEYS, Cuts, layer_counts, spread_cuts, write_cuts
from .student_settings import DepthStudent, ModelStudent, WidthStudent
from .tokenizers_match import check_same_rows, check_same_tokenizer
from .trimming import TrimmedTokenizer, replace_checkpoint, trim_model
from .width import (
    channel_importance,
    check_channels,
    check_groups,
    cut_channels,
    cut_groups,
    group_importance,
    group_width,
    most_important,
    possible_groups,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ammd.model_origin import ModelOrigin

log = logging.getLogger("ammd.distill")
_MEASURED_TEXTS = 32  # 16, 32 and 64, and 32 of other texts, keep the same layers of SmolLM2-135M
# Architectures whose attention must be as wide as the hidden size in llama.cpp (src/models/, `create_tensor_qkv`).
_AS_WIDE_AS_HIDDEN = frozenset({"olmo", "qwen2", "stablelm"})


def check_student(teacher: PreTrainedModel, wanted: DepthStudent | WidthStudent | ModelStudent) -> None:
    """Check, before any work, that the student can be cut from `teacher`.

    Raises:
        DistillError: It cannot; the error names what can.
    """
    if isinstance(wanted, ModelStudent):
        return
    _check_kind(teacher, wanted)
    if wanted.layers is not None:
        have = len(layers_of(teacher))
        check_layers(have, wanted.layers)
        layer_counts(have, wanted.layers, wanted.stages)
    if isinstance(wanted, DepthStudent) and wanted.encoder_layers is not None:
        check_layers(len(layers_of(teacher, Stack.ENCODER)), wanted.encoder_layers, key="encoder_layers")
    if isinstance(wanted, WidthStudent):
        if wanted.key_value_heads is not None:
            check_groups(teacher, wanted.key_value_heads)
        if wanted.intermediate_size is not None:
            check_channels(teacher, wanted.intermediate_size)


def _check_kind(teacher: PreTrainedModel, wanted: DepthStudent | WidthStudent) -> None:
    """Refuse what only the other kind of model can be cut by."""
    if not is_encoder_decoder(teacher):
        if isinstance(wanted, DepthStudent) and wanted.encoder_layers is not None:
            raise DistillError(
                f"a student of `{wanted.encoder_layers}` encoder layers cannot be cut from a teacher without encoder",
                hint="leave `prepare.student.encoder_layers` out",
            )
    elif isinstance(wanted, WidthStudent):
        raise DistillError(
            f"cannot make a `{type(teacher).__name__}` narrower: it is an encoder-decoder",
            hint='use `prepare.student` with `kind = "depth"` or `"model"`',
        )


def size_warnings(teacher: PreTrainedModel, wanted: DepthStudent | WidthStudent | ModelStudent) -> list[str]:
    """Return what the user should know of the sizes that were chosen, as far as other ones would do better."""
    if not isinstance(wanted, WidthStudent):
        return []
    warnings = []
    config, groups, channels = teacher.config, wanted.key_value_heads, wanted.intermediate_size
    if groups is not None and groups != config.num_key_value_heads:
        width, possible = group_width(teacher), possible_groups(teacher)
        warnings += length_warnings(
            "key_value_heads",
            groups,
            tensor="attn_output",
            row_weights=groups * width,
            others=lambda block: [count for count in possible if count * width % block == 0],
        )
        if config.model_type in _AS_WIDE_AS_HIDDEN:
            warnings.append(
                f"llama.cpp loads a `{config.model_type}` only where its heads fill the hidden size: "
                "this student's ONNX files will run, its GGUF files will not"
            )
    if channels is not None and channels != config.intermediate_size:
        warnings += length_warnings(
            "intermediate_size",
            channels,
            tensor="ffn_down",
            row_weights=channels,
            others=lambda block: nearest_multiples(channels, block, most=config.intermediate_size),
        )
    return warnings


def write_student(
    folder: Path,
    pairs: Sequence[TokenPair],
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wanted: DepthStudent | WidthStudent | ModelStudent,
    *,
    trimmed: TrimmedTokenizer | None = None,
    taken: TakenStudent | None = None,
) -> dict[str, Any]:
    """Write the student that is `wanted`, and which cuts are to come, and return what it is.

    Args:
        folder: Of the stage; the student lies in its `student/`.
        pairs: Training texts, on which parts are judged.
        teacher: Is cut in place, so it must have been saved.
        tokenizer: The teacher's full one.
        wanted: As `check_student` has found it possible.
        trimmed: What is left of the tokenizer and of `teacher` already, where the vocabulary was trimmed.
        taken: A student that is another model, and lies there already.

    Raises:
        DistillError: A model cannot be used.
    """
    if isinstance(wanted, ModelStudent):
        assert taken is not None
        if trimmed is not None:
            _trim_taken(folder / "student", trimmed)
        return {"source": wanted.source, "origin": asdict(taken.origin)}
    batch = measured_batch(pairs).to(teacher.device)
    facts: dict[str, Any] = {}
    if wanted.layers is not None:
        facts |= _drop_layers(folder, teacher, batch, wanted, layers=wanted.layers)
    if isinstance(wanted, WidthStudent):
        facts |= _narrow(teacher, batch, wanted)
    save_checkpoint(teacher, trimmed.tokenizer if trimmed else tokenizer, folder / "student")
    return facts | {"parameters": sum(parameter.numel() for parameter in teacher.parameters())}


def _drop_layers(
    folder: Path, model: PreTrainedModel, batch: Batch, wanted: DepthStudent | WidthStudent, *, layers: int
) -> dict[str, Any]:
    """Make the first cut of `model`, in place, write down which are to come, and return what stayed."""
    facts: dict[str, Any] = {}
    cuts: Cuts | None = None
    counts = {Stack.DECODER: layers}
    if is_encoder_decoder(model) and isinstance(wanted, DepthStudent):
        counts = {Stack.ENCODER: _encoder_layers(model, wanted), **counts}
    for stack, count in counts.items():
        influence = block_influence(model, batch, stack=stack)
        first, *to_come = spread_cuts(len(influence), count, wanted.stages)
        kept = kept_layers(influence, first)
        cut_layers(model, kept, stack=stack)
        of = "encoder_" if stack is Stack.ENCODER else ""
        facts |= {KEPT_KEYS[stack]: kept, f"{of}block_influence": influence}
        if to_come:
            cuts = Cuts(kept_layers=tuple(kept), to_come=tuple(to_come), encoder=cuts)
            facts[f"{of}layers_to_come"] = to_come
    if cuts is not None:
        write_cuts(folder, cuts)
    return facts


def _encoder_layers(model: PreTrainedModel, wanted: DepthStudent) -> int:
    """Return how many layers the student's encoder is to have."""
    if wanted.encoder_layers is not None:
        return wanted.encoder_layers
    have = len(layers_of(model, Stack.ENCODER))
    return min(have, max(2, round(have * wanted.layers / len(layers_of(model)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenStudent:
    """A student that is another model."""

    origin: ModelOrigin
    own_tokenizer: PreTrainedTokenizerBase | None  # where it differs from the teacher's


def take_student(
    folder: Path, wanted: ModelStudent, *, teacher: Path, tokenizer: PreTrainedTokenizerBase, is_trimmed: bool
) -> TakenStudent:
    """Fetch another model, before any work that its tokenizer could make useless.

    Args:
        folder: Receives it.
        wanted: Which, and whether its tokenizer may be its own.
        teacher: The teacher's checkpoint.
        tokenizer: The teacher's.
        is_trimmed: Whether both will be trimmed to the tokens that are kept.

    Raises:
        TokenizerMismatchError: Tokenizer or head is not numbered as the teacher's, and is not to be its own.
    """
    origin = materialize(wanted.source, folder)
    found = load_tokenizer(folder)
    try:
        check_same_tokenizer(found, tokenizer)
        if not is_trimmed:
            check_same_rows(folder, teacher)
    except TokenizerMismatchError as exc:
        if wanted.tokenizer != "own":
            raise
        log.info("the student keeps its own tokenizer: %s", exc)
        return TakenStudent(origin=origin, own_tokenizer=found)
    return TakenStudent(origin=origin, own_tokenizer=None)


def _trim_taken(folder: Path, trimmed: TrimmedTokenizer) -> None:
    """Trim a student with the teacher's full tokenizer as the teacher was."""
    student = load_model(folder, dtype=torch.float32)
    trim_model(student, trimmed.new_ids)
    replace_checkpoint(folder, student, trimmed.tokenizer)


def measured_batch(pairs: Sequence[TokenPair]) -> Batch:
    """Return the training texts on which influence and importance are measured."""
    return build_batch(pairs[:_MEASURED_TEXTS])


def _narrow(model: PreTrainedModel, batch: Batch, wanted: WidthStudent) -> dict[str, Any]:
    """Cut heads and channels of `model`, in place, and return what stayed."""
    facts: dict[str, Any] = {}
    if wanted.key_value_heads is not None:
        kept = [most_important(one, wanted.key_value_heads) for one in group_importance(model, batch)]
        cut_groups(model, kept)
        facts["kept_key_value_heads"] = [indices.tolist() for indices in kept]
    if wanted.intermediate_size is not None:
        importance = channel_importance(model, batch)
        cut_channels(model, [most_important(one, wanted.intermediate_size) for one in importance])
        facts["intermediate_size"] = wanted.intermediate_size
    facts["fallback_rows"] = fallback_rows(_rows(model.config))
    if "every other" in facts["fallback_rows"]:
        log.info(
            "the hidden size of `%d` is the teacher's own and does not divide by %d: most of the student's matrices "
            "will be stored in larger types than Q4_K_M means, whatever its other sizes are",
            model.config.hidden_size,
            K_BLOCK_WEIGHTS,
        )
    return facts


def _rows(config: Any) -> dict[str, int]:
    """Return the row lengths of the student's matrices, by their names in a GGUF."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "ffn_down": config.intermediate_size,
        "attn_output": heads * head_size,
        "every other": config.hidden_size,
    }
