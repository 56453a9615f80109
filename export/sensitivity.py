"""The child process that says what each tensor loses in each type: `python -m ammd.export.sensitivity REQUEST`.

A tensor that is stored as W + D instead of W moves the model's distribution by a KL of about half of D' F D a token,
F being the Fisher information of W: the mean of g g' over tokens that the model itself draws, g the gradient of their
log-likelihood. So one backward pass a text, with tokens drawn at each of its positions, tells for all tensors and all
types at once: the mean of (g . D)^2 / 2. Nothing is approximated by a diagonal, and D is what llama.cpp's own
quantizer makes, read back from its files. What is left out: third order, and that errors of several tensors meet.

The chosen mixture is then put into the model, and its KL measured on texts that chose nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import ExportError

from .activations import tensor_names
from .allocation import Option, Plan, best_within, finest, smallest
from .calibration import read_pieces
from .captured import end_child
from .gguf_contents import read_matrices

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

_TEXT_TOKENS = 128  # the longest piece of a text: gradients of more texts tell more than those of longer ones
_SAMPLED_TEXTS, _MEASURED_TEXTS = 48, 12
_MEASURED_TOKENS = 1024  # whose logits are kept
_SIZE_STEPS = 500  # a size that is searched for is right to one part in so many


def main(arguments: Sequence[str]) -> None:
    """Choose a type for each tensor: `checkpoint`, `f16`, `candidates`, `texts`, `bytes` or `max_kl`, `target`."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    request = json.loads(arguments[0])
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    checkpoint = Path(request["checkpoint"])
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    ).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint, local_files_only=True)
    pieces = [
        piece[:_TEXT_TOKENS]
        for piece in read_pieces(
            [Path(path) for path in request["texts"]],
            tokenizer,
            max_tokens=_TEXT_TOKENS * 8 * (_SAMPLED_TEXTS + _MEASURED_TEXTS),
            context_tokens=int(model.config.max_position_embeddings),
        )
        if len(piece) > 1
    ]
    measured, sampled = pieces[:_MEASURED_TEXTS], pieces[_MEASURED_TEXTS:][:_SAMPLED_TEXTS]
    if not sampled:
        raise ExportError(f"{len(pieces)} texts are too few to measure tensors on", hint="name more of them")
    names = tensor_names(
        [name.removesuffix(".weight") for name, weight in model.named_parameters() if weight.ndim == 2],
        Path(request["f16"]),
        with_output=True,
    )
    weights = {gguf: model.get_parameter(f"{module}.weight") for module, gguf in names.items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    with tempfile.TemporaryDirectory(dir=Path(request["target"]).parent) as scratch:
        errors = Errors(Path(scratch), weights, f16=Path(request["f16"]), candidates=request["candidates"])
        losses = expected_losses(model, sampled, weights, errors)
        options = {
            name: [
                Option(type_name=kind, bytes=errors.bytes[kind][name], loss=losses[kind][name])
                for kind in errors.bytes
            ]
            for name in weights
        }
        trial = Trial(model, measured, weights, errors)
        plan, kl = _choose(options, trial, bytes_limit=request["bytes"], max_kl=request["max_kl"])
    document = asdict(plan) | {"measured_kl_nats": kl}
    Path(request["target"]).write_text(json.dumps(document), encoding="utf-8")


class Errors:
    """What each type changes in each tensor, in the checkpoint's order of rows; kept on the disk as float16."""

    def __init__(
        self, folder: Path, weights: Mapping[str, Tensor], *, f16: Path, candidates: Mapping[str, str]
    ) -> None:
        """Read the quantized files, by type."""
        self.bytes: dict[str, dict[str, int]] = {}
        self._places: dict[tuple[str, str], NDArray[np.float16]] = {}
        exact = {str(tensor.name): tensor for tensor in read_matrices(f16)}
        orders = {name: row_order(exact[name].data, weight) for name, weight in weights.items()}
        for kind, path in candidates.items():
            stored = {str(tensor.name): tensor for tensor in read_matrices(Path(path))}
            self.bytes[kind] = {name: int(stored[name].n_bytes) for name in weights}
            for name in weights:
                self._write(folder / f"{kind}-{len(self._places)}", kind, name, stored[name], exact, orders)

    def error(self, kind: str, name: str) -> Tensor:
        """Return the change. Float32, of the weight's shape."""
        import torch

        return torch.from_numpy(self._places[kind, name]).float()

    def _write(
        self,
        path: Path,
        kind: str,
        name: str,
        stored: Any,
        exact: Mapping[str, Any],
        orders: Mapping[str, Any],
    ) -> None:
        import numpy as np
        from gguf import quants

        error = quants.dequantize(stored.data, stored.tensor_type) - exact[name].data.astype(np.float32)
        place = np.memmap(path, dtype=np.float16, mode="w+", shape=error.shape)
        place[orders[name]] = error
        self._places[kind, name] = place


def row_order(stored: NDArray[np.float16], weight: Tensor) -> Any:
    """Return, for each row of a GGUF's F16 matrix, its place in the checkpoint's; converters interleave query rows.

    Raises:
        ExportError: The rows are not the same ones.
    """
    import numpy as np

    own = weight.detach().half().numpy()
    if np.array_equal(stored, own):
        return np.arange(len(own))
    # Rows as opaque bytes have an order, and two lists of the same rows are equal once sorted.
    row = np.dtype((np.void, own.shape[1] * own.itemsize))
    sorted_stored, sorted_own = (
        np.argsort(np.ascontiguousarray(matrix).view(row).reshape(-1), kind="stable")
        for matrix in (stored, own)
    )
    order = np.empty(len(own), dtype=np.int64)
    order[sorted_stored] = sorted_own
    if not np.array_equal(stored, own[order]):
        raise ExportError("a matrix of the GGUF does not hold the checkpoint's rows")
    return order


def expected_losses(
    model: torch.nn.Module, pieces: Sequence[Sequence[int]], weights: Mapping[str, Tensor], errors: Errors
) -> dict[str, dict[str, float]]:
    """Return the KL a token that each type's error in each tensor brings, by type and tensor."""
    import torch

    totals = {kind: dict.fromkeys(weights, 0.0) for kind in errors.bytes}
    tokens = sum(map(len, pieces))
    for piece in pieces:
        logits = model(input_ids=torch.tensor([list(piece)]), use_cache=False).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1)
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, drawn, reduction="sum"))
        for name, weight in weights.items():
            assert weight.grad is not None
            for kind, found in totals.items():
                found[name] += float(weight.grad.flatten() @ errors.error(kind, name).flatten()) ** 2 / 2
            weight.grad = None
    return {kind: {name: total / tokens for name, total in found.items()} for kind, found in totals.items()}


class Trial:
    """The model with a plan's errors in it."""

    def __init__(
        self,
        model: torch.nn.Module,
        pieces: Sequence[Sequence[int]],
        weights: Mapping[str, Tensor],
        errors: Errors,
    ) -> None:
        """Take the model as it is for the exact one."""
        self._model, self._pieces, self._weights, self._errors = model, pieces, weights, errors
        self._exact = {name: weight.detach().clone() for name, weight in weights.items()}
        self._logprobs = [logprobs.half() for logprobs in self._read()]

    def kl(self, plan: Plan) -> float:
        """Return KL(exact || plan) a token."""
        import torch

        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._exact[name] + self._errors.error(plan.types[name], name))
        total, tokens = 0.0, 0
        for exact, own in zip(self._logprobs, self._read(), strict=True):
            reference = exact.float()
            total += float((reference.exp() * (reference - own)).sum())
            tokens += len(own)
        return total / tokens

    def _read(self) -> list[Tensor]:
        import torch

        found: list[Tensor] = []
        with torch.no_grad():
            for piece in self._pieces:
                logits = self._model(input_ids=torch.tensor([list(piece)]), use_cache=False).logits[0]
                found.append(logits.float().log_softmax(-1))
                if sum(map(len, found)) >= _MEASURED_TOKENS:
                    break
        return found


def _choose(
    options: Mapping[str, Sequence[Option]], trial: Trial, *, bytes_limit: int | None, max_kl: float | None
) -> tuple[Plan, float]:
    """Return the best plan within the limit, and its measured KL.

    Raises:
        ExportError: None is.
    """
    least = smallest(options)
    if bytes_limit is not None:
        plan = best_within(options, bytes_limit)
        if plan is None:
            raise ExportError(
                f"the smallest mixture takes {least.bytes} bytes of weights, the budget leaves {bytes_limit}",
                hint="raise the budget of `export.mixed`, or make the student smaller",
            )
        return plan, trial.kl(plan)
    assert max_kl is not None
    best = finest(options)
    kl = trial.kl(best)
    if kl > max_kl:
        raise ExportError(
            f"the finest mixture is {kl:.3g} nats a token from the checkpoint, `max_kl` is {max_kl:.3g}",
            hint="raise `export.mixed.max_kl`, or take `gguf-f16`",
        )
    low, high = least.bytes, best.bytes
    while (
        high - low > best.bytes // _SIZE_STEPS
    ):  # the plan for `high` is near enough, that for `low` maybe not
        middle = (low + high) // 2
        plan = best_within(options, middle)
        assert plan is not None  # the smallest one fits
        if (here := trial.kl(plan)) <= max_kl:
            high, best, kl = plan.bytes, plan, here
        else:
            low = middle
    return best, kl


if __name__ == "__main__":
    end_child(main)
