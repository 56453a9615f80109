"""A student that is its teacher with narrower layers: fewer feed-forward channels, fewer attention heads.

What stays is chosen by activations on the training texts, as in Minitron (Muralidharan et al. 2024, arXiv 2407.14679,
its importance analysis): one forward pass, no gradients. Minitron ranks by the size of an activation; here it is the
size of what leaves the layer: the root mean square, over real tokens, of the norm of what a part adds to the residual
stream. A channel adds a multiple of its column of the down projection, so that norm is |activation| times the column's
norm, exactly, and a part that adds nothing is worth nothing. How far SmolLM2-135M is from itself, cut so (nats a token
of KL on its own answers to a dozen held-out prompts or more, before training):

    by                            1536 channels to 1024     3 key-value heads to 2
    what a part adds, rms                          1.16                       0.92   <- chosen
    what a part adds, mean                         1.29                       0.92
    its activation alone, rms                      1.09                       1.05
    chance                                         8.6                        2.5
    the weights alone                             12.3

Heads go by whole key-value groups: each query head that stays keeps the keys and values it has learned with, and
grouped-query attention stays regular. Every layer chooses its own parts, but all layers keep equally many, because a
config has one number for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ammd.errors import DistillError

from .row_lengths import BLOCK_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .batches import Batch

_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def check_channels(model: PreTrainedModel, channels: int) -> None:
    """Check that every feed-forward layer can be cut to `channels`.

    Raises:
        DistillError: The layers are not gated ones, or the teacher has fewer channels.
    """
    _feed_forwards(model)
    have = model.config.intermediate_size
    if channels > have:
        raise DistillError(
            f"a student of `{channels}` feed-forward channels cannot be cut from a teacher of {have}",
            hint=f"set `prepare.student.intermediate_size` to at most {have // BLOCK_WEIGHTS * BLOCK_WEIGHTS}",
        )


def check_groups(model: PreTrainedModel, groups: int) -> None:
    """Check that every attention layer can be cut to `groups` key-value heads.

    Raises:
        DistillError: The attention is of another kind, or it cannot have so many.
    """
    _attentions(model)
    possible = possible_groups(model)
    if groups not in possible:
        raise DistillError(
            f"a student of `{groups}` key-value heads cannot be cut from a teacher of "
            f"{model.config.num_key_value_heads}",
            hint=f"set `prepare.student.key_value_heads` to one of {', '.join(map(str, possible))}",
        )


def possible_groups(model: PreTrainedModel) -> list[int]:
    """Return how many key-value heads a student of `model` may have.

    All of the teacher's; or fewer, where attention is then a multiple of 32 wide and transformers takes the config
    (Llama's must have a number of attention heads that divides the hidden size).
    """
    have = model.config.num_key_value_heads
    width = group_width(model)
    return [
        groups
        for groups in range(1, have + 1)
        if groups == have or (groups * width % BLOCK_WEIGHTS == 0 and _is_valid(model, groups))
    ]


def group_width(model: PreTrainedModel) -> int:
    """Return how wide the attention heads are, together, that share a key and a value."""
    heads_each = model.config.num_attention_heads // model.config.num_key_value_heads
    return int(heads_each * _attentions(model)[0].head_dim)


def channel_importance(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Return the size of what each channel adds to the residual stream. float32 [channels] for each layer."""

    def measure(down: Any, entering: torch.Tensor) -> torch.Tensor:
        return _root_mean_square(entering).mul(down.weight.norm(dim=0))

    return _measure(model, batch, [part.down_proj for part in _feed_forwards(model)], measure)


def group_importance(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Return the size of what each group of heads adds to the residual stream. float32 [groups] for each layer."""
    parts, groups = _attentions(model), model.config.num_key_value_heads

    def measure(out: Any, entering: torch.Tensor) -> torch.Tensor:
        pieces = zip(entering.chunk(groups, dim=1), out.weight.chunk(groups, dim=1), strict=True)
        return torch.stack([_root_mean_square((heads @ columns.T).norm(dim=1)) for heads, columns in pieces])

    return _measure(model, batch, [part.o_proj for part in parts], measure)


def most_important(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the `count` largest, in their own order; of equals the first stay."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def cut_channels(model: PreTrainedModel, kept: Sequence[torch.Tensor]) -> None:
    """Reduce the feed-forward layers of `model`, in place, to the channels `kept` of each."""
    for part, indices in zip(_feed_forwards(model), kept, strict=True):
        _keep_rows(part.gate_proj, indices)
        _keep_rows(part.up_proj, indices)
        _keep_columns(part.down_proj, indices)
        part.intermediate_size = len(indices)
    model.config.intermediate_size = len(kept[0])


def cut_groups(model: PreTrainedModel, kept: Sequence[torch.Tensor]) -> None:
    """Reduce the attention of `model`, in place, to the key-value groups `kept` of each layer."""
    parts = _attentions(model)
    width, head_size = group_width(model), parts[0].head_dim
    heads_each = width // head_size
    for part, groups in zip(parts, kept, strict=True):
        queries = _positions(groups, width)
        _keep_rows(part.q_proj, queries)
        _keep_rows(part.k_proj, _positions(groups, head_size))
        _keep_rows(part.v_proj, _positions(groups, head_size))
        _keep_columns(part.o_proj, queries)
    model.config.num_key_value_heads = len(kept[0])
    model.config.num_attention_heads = len(kept[0]) * heads_each
    model.config.head_dim = head_size  # no longer what hidden size and heads would tell


@torch.inference_mode()
def _measure(
    model: PreTrainedModel,
    batch: Batch,
    modules: Sequence[Any],
    measure: Callable[[Any, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """Return what `measure` makes of each module and what enters it at real tokens [n, width], module by module."""
    mask = batch.attention_mask.bool()
    found: dict[Any, torch.Tensor] = {}

    def keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        found[module] = measure(module, inputs[0][mask].float())

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        model.get_decoder()(input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[module] for module in modules]


def _feed_forwards(model: PreTrainedModel) -> list[Any]:
    """Return the feed-forward part of each layer, or refuse the model."""
    parts = _parts(model, "mlp", _FEED_FORWARD)
    channels = getattr(model.config, "intermediate_size", None)
    for part in parts:
        sizes = {part.gate_proj.out_features, part.up_proj.out_features, part.down_proj.in_features}
        if sizes != {channels} or _other_parameters(part, _FEED_FORWARD):
            raise _unknown(model, "mlp", part)
    return parts


def _attentions(model: PreTrainedModel) -> list[Any]:
    """Return the attention part of each layer, or refuse the model."""
    parts = _parts(model, "self_attn", _ATTENTION)
    heads, groups = model.config.num_attention_heads, getattr(model.config, "num_key_value_heads", 0)
    for part in parts:
        head_size = getattr(part, "head_dim", 0)
        sizes = [part.q_proj.out_features, part.k_proj.out_features, part.v_proj.out_features]
        expected = [heads * head_size, groups * head_size, groups * head_size]
        # What is as long as a head (Qwen3's norms) serves all heads alike; anything else belongs to some of them.
        others = [shape for shape in _other_parameters(part, _ATTENTION) if shape != (head_size,)]
        if sizes != expected or part.o_proj.in_features != sizes[0] or heads % groups or others:
            raise _unknown(model, "self_attn", part)
    return parts


def _parts(model: PreTrainedModel, name: str, projections: Sequence[str]) -> list[Any]:
    parts = [getattr(layer, name, None) for layer in getattr(model.get_decoder(), "layers", [])]
    for part in parts or [None]:
        if not all(isinstance(getattr(part, key, None), torch.nn.Linear) for key in projections):
            raise _unknown(model, name, part)
    return parts


def _other_parameters(part: Any, projections: Sequence[str]) -> list[tuple[int, ...]]:
    return [
        tuple(parameter.shape)
        for name, parameter in part.named_parameters()
        if name.partition(".")[0] not in projections
    ]


def _unknown(model: PreTrainedModel, name: str, part: Any) -> DistillError:
    found = "missing" if part is None else f"a `{type(part).__name__}` of another build"
    return DistillError(
        f"cannot make a `{type(model).__name__}` narrower: its layers' `{name}` is {found}",
        hint='layers as in Llama, Mistral and Qwen are known; use `prepare.student` with `kind = "depth"` or `"model"`',
    )


def _is_valid(model: PreTrainedModel, groups: int) -> bool:
    from huggingface_hub.errors import StrictDataclassError

    config = model.config
    heads = config.num_attention_heads // config.num_key_value_heads * groups
    if config.model_type == "llama" and config.hidden_size % heads:
        return False  # transformers 5 refuses to read it, also where 4 has written it
    try:
        type(config).from_dict(
            {**config.to_dict(), "num_attention_heads": heads, "num_key_value_heads": groups}
        )
    except (StrictDataclassError, ValueError):
        return False
    return True


def _root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """Return it over the first axis, the tokens."""
    norms: torch.Tensor = torch.linalg.vector_norm(values, dim=0)
    return norms / math.sqrt(len(values))


def _positions(groups: torch.Tensor, width: int) -> torch.Tensor:
    """Return the rows of each group, `width` of them, one group after the other."""
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()


def _keep_rows(linear: Any, rows: torch.Tensor) -> None:
    linear.weight = torch.nn.Parameter(linear.weight.detach()[rows])
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[rows])
    linear.out_features = len(rows)


def _keep_columns(linear: Any, columns: torch.Tensor) -> None:
    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, columns])
    linear.in_features = len(columns)
