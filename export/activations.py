"""The child process that measures an importance matrix: `python -m ammd.export.activations REQUEST`.

The checkpoint itself reads the texts, in float32, and a hook on each linear layer sums up its squared inputs. Only
rows of a matrix are ever moved on the way to a GGUF (query and key heads), never columns, so what is summed up
for the checkpoint's columns holds for the file's. Like llama.cpp's own tool it leaves the output matrix out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.artifact import hash_file
from ammd.errors import ExportError
from ammd.gguf_reader import open_gguf

from .calibration import PIECE_TOKENS, read_pieces
from .captured import end_child
from .imatrix import Imatrix, write_imatrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ROWS = 8  # texts that go through the network at once


def main(arguments: Sequence[str]) -> None:
    """Measure what the request asks for: `checkpoint`, `gguf`, `texts`, `max_tokens`, `target`."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    request = json.loads(arguments[0])
    checkpoint = Path(request["checkpoint"])
    torch.set_num_threads(request["threads"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    paths = [Path(path) for path in request["texts"]]
    pieces = read_pieces(
        paths,
        tokenizer,
        max_tokens=request["max_tokens"],
        context_tokens=int(model.config.max_position_embeddings),
    )
    names = tensor_names(
        [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)],
        Path(request["gguf"]),
    )
    sums = sum_squared_inputs(model.eval(), pieces, names)
    tokens = sum(map(len, pieces))
    imatrix = Imatrix(
        sums=sums,
        tokens={name: _count(tokens) for name in sums},
        # By content: a path would make two files of the same texts differ.
        datasets=tuple(f"sha256:{hash_file(path)}" for path in paths),
        chunk_tokens=PIECE_TOKENS,
        chunks=max(1, tokens // PIECE_TOKENS),
    )
    write_imatrix(Path(request["target"]), imatrix)


def tensor_names(modules: Sequence[str], gguf: Path, *, with_output: bool = False) -> dict[str, str]:
    """Return, by module, the name that its weight has in a GGUF of the same model; unnamed ones are left out.

    Raises:
        ExportError: The file holds no tensor under any of the names.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    reader = open_gguf(gguf)
    architecture = reader.fields["general.architecture"].contents()
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    by_name = get_tensor_name_map(number, reader.fields[f"{architecture}.block_count"].contents())
    stored = {str(tensor.name) for tensor in reader.tensors if len(tensor.shape) > 1}
    named = {module: by_name.get_name(f"{module}.weight", try_suffixes=(".weight",)) for module in modules}
    found = {
        module: name
        for module, name in named.items()
        if name in stored and (with_output or name != "output.weight")
    }
    if not found:
        raise ExportError(f"no matrix of the checkpoint has a name of `{architecture}` in `{gguf}`")
    return found


def sum_squared_inputs(
    model: torch.nn.Module, pieces: Sequence[Sequence[int]], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the squared inputs of each module in `names`, summed over all tokens. Float32 [columns] by GGUF name."""
    import torch

    modules = dict(model.named_modules())
    sums = {
        name: torch.zeros(modules[module].weight.shape[1], dtype=torch.float64)
        for module, name in names.items()
    }
    mask = torch.empty(0, dtype=torch.bool)

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[name] += inputs[0][mask].double().square().sum(0)

        return add

    hooks = [modules[module].register_forward_pre_hook(watch(name)) for module, name in names.items()]
    by_length = sorted(pieces, key=len)  # little padding
    with torch.inference_mode():
        for start in range(0, len(by_length), _ROWS):
            rows = by_length[start : start + _ROWS]
            token_ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
            mask = torch.zeros_like(token_ids, dtype=torch.bool)
            for row, ids in enumerate(rows):
                token_ids[row, : len(ids)] = torch.tensor(ids)
                mask[row, : len(ids)] = True
            model(input_ids=token_ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return {name: total.float().numpy() for name, total in sums.items()}


def _count(tokens: int) -> Any:
    import numpy as np

    return np.array([tokens], dtype=np.float32)


if __name__ == "__main__":
    end_child(main)
