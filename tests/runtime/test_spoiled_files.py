"""Files that are wrong in the ways that users meet; each is caught, and by the proof that should."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import AmmdError, ArtifactError, ParityError
from ammd.export.to_gguf import write_gguf
from ammd.runtime.model_file import read_model_file
from ammd.runtime.settings import VerifySettings
from ammd.runtime.verify import verify_file

SMALL = VerifySettings(texts=4, greedy_prompts=2, greedy_tokens=8)
HEAD_SIZE, KV_HEADS = 16, 2


@pytest.fixture(scope="module")
def checkpoint(build_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in which two digits would be one token, if digits were not cut one by one; attention that looks."""
    folder = tmp_path_factory.mktemp("digits") / "checkpoint"
    return build_checkpoint(folder, more_merges=[("1", "2"), ("3", "1")], initializer_range=0.2)


@pytest.fixture(scope="module")
def sound(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "student-f16.gguf"
    write_gguf(checkpoint, path, name="tiny")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Name {n} hats."}) + "\n" for n in (12, 31, 7, 300)))
    return path


def _patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def wrong_pre_tokenizer(path: Path) -> None:
    _patch(path, b"smollm", b"falcon")  # which keeps up to three digits together


def no_template(path: Path) -> None:
    _patch(path, b"tokenizer.chat_template", b"tokenizer.chat_tempXXXX")


def swapped_end_token(path: Path) -> None:
    length = (10).to_bytes(8, "little")  # stands before a token's text, but not in the template
    _patch(path, length + b"<|im_end|>", length + b"<|im_eng|>")  # the text by which llama.cpp knows it
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 0
    reader.data.flush()


def keys_permuted_by_the_wrong_head_count(path: Path) -> None:
    """As a converter does that takes the query heads' number for the key heads'."""
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name.endswith("attn_k.weight"):
            rows = np.array(tensor.data)
            plain = rows.reshape(KV_HEADS, HEAD_SIZE // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
            wrong = plain.reshape(4, 2, HEAD_SIZE // 4, -1).swapaxes(1, 2).reshape(rows.shape)
            tensor.data[:] = wrong
    reader.data.flush()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.real
def test_the_sound_file_passes(sound: Path, checkpoint: Path, prompts: Path) -> None:
    record = verify_file(sound, against=checkpoint, heldout=prompts, settings=SMALL)
    assert record["kl_nats"] < record["kl_limit_nats"]
    assert record["sha256"] == read_model_file(sound).sha256
    assert record["greedy_shortest_prefix"] == 8


@pytest.mark.real
@pytest.mark.parametrize(
    ("spoil", "caught"),
    [
        (wrong_pre_tokenizer, r"token ids differ for 'Numbers: 0 7 42"),
        (no_template, r"cannot render|stores no chat template"),
        (
            swapped_end_token,
            r"token 2 ends a response of the checkpoint but not of the file",
        ),
        (keys_permuted_by_the_wrong_head_count, r"KL is .* nats a token, the limit is 0\.001"),
        (cut_off, r"is damaged or no (?:language model in )?GGUF"),
    ],
)
def test_a_spoiled_gguf_is_refused(
    sound: Path,
    checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    caught: str,
) -> None:
    path = Path(shutil.copy(sound, tmp_path / sound.name))
    spoil(path)
    with pytest.raises(AmmdError) as error:
        verify_file(path, against=checkpoint, heldout=prompts, settings=SMALL)
    assert error.value.exit_code in (3, 5, 6)
    faults = error.value.facts.get("record", {}).get("faults", [])
    assert re.search(caught, "\n".join([str(error.value), *faults]))


def _weights(folder: Path) -> Path:
    return next(folder.glob("model.onnx?data"))  # genai's builder writes a dot, optimum an underscore


def _cut(folder: Path) -> None:
    data = _weights(folder)
    data.write_bytes(data.read_bytes()[:-100])


def _removed(folder: Path) -> None:
    _weights(folder).unlink()


def _elsewhere(folder: Path) -> None:
    """Rename the weights to a place outside of the folder, of the same length: the graph is a protobuf."""
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"model.onnx.data", b"../../weights.d"))


@pytest.mark.parametrize(
    ("spoil", "caught"),
    [
        (_cut, r"model\.onnx\.data` is cut off: `.*` ends at byte \d+, the file at \d+"),
        (_removed, r"keeps `.*` in `model\.onnx\.data`, which is not there"),
        (_elsewhere, r"which is no path below its own folder"),
    ],
)
def test_an_onnx_model_without_its_weights_is_refused(
    tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path, spoil: Callable[[Path], None], caught: str
) -> None:
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "onnx-fp32"))
    assert read_model_file(folder).vocab_size == 268
    spoil(folder)
    with pytest.raises(ArtifactError, match=caught):
        verify_file(folder, against=None, heldout=None, settings=SMALL)


def test_sizes_are_read_from_every_kind(tiny_checkpoint: Path, tiny_gguf: Path, tiny_onnx: Path) -> None:
    found = [read_model_file(path) for path in (tiny_checkpoint, tiny_gguf, tiny_onnx)]
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert {facts.vocab_size for facts in found} == {config["vocab_size"]}
    assert {facts.context_tokens for facts in found} == {config["max_position_embeddings"]}
    # Builders of onnxruntime-genai before 0.18 store the embedding twice.
    assert [facts.tied_head for facts in found[:2]] == [True, True]


@pytest.mark.parametrize(
    ("spoil", "caught"),
    [(_cut, r"model\.onnx_data` is cut off"), (_removed, r"in `model\.onnx_data`, which is not there")],
)
def test_a_standard_graph_without_its_weights_is_refused(
    tiny_standard_onnx: Path, tmp_path: Path, spoil: Callable[[Path], None], caught: str
) -> None:
    folder = Path(shutil.copytree(tiny_standard_onnx, tmp_path / "onnx"))
    spoil(folder)
    with pytest.raises(ArtifactError, match=caught):
        verify_file(folder, against=None, heldout=None, settings=SMALL)


@pytest.mark.parametrize("tied", [True, False])
def test_a_standard_graph_tells_whether_its_head_is_tied(
    tiny_checkpoint: Path, make_standard_onnx: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    facts = read_model_file(make_standard_onnx(tiny_checkpoint, tmp_path / "onnx", tied=tied))
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert (facts.vocab_size, facts.context_tokens) == (
        config["vocab_size"],
        config["max_position_embeddings"],
    )
    assert facts.tied_head is tied


def test_a_graph_that_shows_no_lookup_tells_nothing_of_its_head(
    tiny_checkpoint: Path, make_standard_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    def hide(model: Any) -> None:
        next(entry for entry in model.graph.input if entry.name == "input_ids").name = "ids"
        for node in model.graph.node:
            node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]

    assert read_model_file(make_standard_onnx(tiny_checkpoint, tmp_path / "a", change=hide)).tied_head is None


def test_a_file_by_itself_is_looked_at(tiny_gguf: Path) -> None:
    record = verify_file(tiny_gguf, against=None, heldout=None, settings=SMALL)
    assert (record["faults"], record["chats"], record["end_token_ids"]) == ([], 4, [0, 2])
    assert record["vocab_size"] == 268
    assert isinstance(record["answer"], str)


@pytest.mark.real
def test_a_file_by_itself_that_cannot_chat_is_refused(sound: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sound, tmp_path / sound.name))
    no_template(path)
    with pytest.raises(ParityError, match=r"the chat `one turn` cannot be rendered.*more") as error:
        verify_file(path, against=None, heldout=None, settings=SMALL)
    record: dict[str, Any] = error.value.facts["record"]
    assert len(record["faults"]) == 2
