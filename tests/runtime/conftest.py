"""Fixtures: the tiny checkpoint as a GGUF and as ONNX folders, held-out text, an engine made of rules."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROMPTS = ("Hello there", "What is in a name?", "count to 10", "the thing and another")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32, written tensor by tensor, so that no converter is tested here."""
    return write_gguf(tiny_checkpoint, tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf")


def write_gguf(checkpoint: Path, path: Path, *, end_token: int = 2, noise: float = 0.0) -> Path:
    """Write a llama checkpoint as GGUF; `noise` is added to the weights, to make a bad file."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}
    writer.add_rope_freq_base(rope["rope_theta"])
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    padding = config["vocab_size"] - len(tokens)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(padding)])
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * padding)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end_token)
    writer.add_add_bos_token(False)
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())
    random = np.random.default_rng(0)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        values = tensor.astype(np.float32)
        values = values + noise * random.standard_normal(values.shape, dtype=np.float32)
        if "q_proj" in name or "k_proj" in name:  # llama.cpp pairs rotary dimensions differently
            count = heads if "q_proj" in name else groups
            shape = values.shape
            values = values.reshape(count, 2, shape[0] // count // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(scope="session")
def make_gguf() -> Callable[..., Path]:
    """`write_gguf`, for tests that need a faulty file."""
    return write_gguf


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32, built by onnxruntime-genai."""
    folder = tmp_path_factory.mktemp("onnx")
    command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(tiny_checkpoint), "-o", str(folder / "tiny"), "-p", "fp32", "-e", "cpu"]
    command += ["-c", str(folder / "scratch")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # The builder has transformers rewrite the tokenizer files; the exporter puts the checkpoint's own back.
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "tiny" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    return folder / "tiny"


class StandardGraph:
    """A llama checkpoint in standard operators, a stand-in for what optimum exports: its names, types and cache."""

    def __init__(self, checkpoint: Path, *, positions: bool, half: bool, tied: bool) -> None:
        from safetensors.numpy import load_file

        self.config = config = json.loads((checkpoint / "config.json").read_text())
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config["hidden_size"] // self.heads
        self.positions, self.half, self.tied = positions, half, tied
        self.weights = load_file(checkpoint / "model.safetensors")
        self.nodes: list[Any] = []
        self.stored: list[Any] = []

    def put(self, values: object, *, name: str = "") -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        from onnx import helper

        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def norm(self, hidden: str, weight: str) -> str:
        mean = self.op("ReduceMean", self.op("Mul", hidden, hidden), self.put(np.array([-1])))
        shifted = self.op("Add", mean, self.put(np.float32(self.config["rms_norm_eps"])))
        scaled = self.op("Div", hidden, self.op("Sqrt", shifted))
        return self.op("Mul", scaled, self.put(self.weights[weight]))

    def project(self, hidden: str, name: str) -> str:
        return self.op("MatMul", hidden, self.put(self.weights[f"{name}.weight"].T))

    def split(self, values: str, heads: int) -> str:
        shape = self.put(np.array([0, 0, heads, self.size]))
        return self.op("Transpose", self.op("Reshape", values, shape), perm=[0, 2, 1, 3])

    def turn(self, values: str) -> str:
        """Rotate heads by their positions."""
        half, axis = self.put(np.array([self.size // 2])), self.put(np.array([3]))
        first = self.op("Slice", values, self.put(np.array([0])), half, axis)
        second = self.op("Slice", values, half, self.put(np.array([self.size])), axis)
        turned = self.op("Concat", self.op("Neg", second), first, axis=3)
        return self.op("Add", self.op("Mul", values, "cos"), self.op("Mul", turned, "sin"))

    def extend(self, layer: int, kind: str, new: str) -> str:
        """Put what is new behind the past, give it out, and return it with a place for the heads of a group."""
        new = self.op("Cast", new, to=10) if self.half else new
        whole = self.op(
            "Concat",
            f"past_key_values.{layer}.{kind}",
            new,
            axis=2,
            name=f"present.{layer}.{kind}",
        )
        whole = self.op("Cast", whole, to=1) if self.half else whole
        return self.op("Unsqueeze", whole, self.put(np.array([2])))

    def attend(self, hidden: str, layer: int) -> str:
        name = f"model.layers.{layer}.self_attn"
        queries = self.turn(self.split(self.project(hidden, f"{name}.q_proj"), self.heads))
        keys = self.turn(self.split(self.project(hidden, f"{name}.k_proj"), self.groups))
        values = self.split(self.project(hidden, f"{name}.v_proj"), self.groups)
        keys, values = self.extend(layer, "key", keys), self.extend(layer, "value", values)
        grouped = self.put(np.array([0, self.groups, self.heads // self.groups, -1, self.size]))
        queries = self.op("Reshape", queries, grouped)
        products = self.op("MatMul", queries, self.op("Transpose", keys, perm=[0, 1, 2, 4, 3]))
        scores = self.op("Mul", products, self.put(np.float32(self.size**-0.5)))
        weighted = self.op("MatMul", self.op("Softmax", self.op("Add", scores, "bias"), axis=-1), values)
        flat = self.op("Reshape", weighted, self.put(np.array([0, self.heads, -1, self.size])))
        joined = self.op("Transpose", flat, perm=[0, 2, 1, 3])
        joined = self.op("Reshape", joined, self.put(np.array([0, 0, self.heads * self.size])))
        return self.project(joined, f"{name}.o_proj")

    def feed_forward(self, hidden: str, layer: int) -> str:
        name = f"model.layers.{layer}.mlp"
        gate = self.project(hidden, f"{name}.gate_proj")
        gated = self.op("Mul", gate, self.op("Sigmoid", gate))
        return self.project(
            self.op("Mul", gated, self.project(hidden, f"{name}.up_proj")), f"{name}.down_proj"
        )

    def places(self) -> None:
        """Name the rotations and the bias that hides the future."""
        zero, one = self.put(np.int64(0)), self.put(np.int64(1))
        stop = self.op("Gather", self.op("Shape", "attention_mask"), one)
        if not self.positions:
            start = self.op("Sub", stop, self.op("Gather", self.op("Shape", "input_ids"), one))
            own = self.op("Range", start, stop, one)
            self.op("Unsqueeze", own, self.put(np.array([0])), name="position_ids")
        rope = self.config.get("rope_parameters") or self.config
        rates = rope["rope_theta"] ** (-np.arange(0, self.size, 2, dtype=np.float32) / self.size)
        columns = self.op("Unsqueeze", "position_ids", self.put(np.array([1, 3])))
        angles = self.op("Mul", self.op("Cast", columns, to=1), self.put(np.tile(rates, 2)))
        self.op("Cos", angles, name="cos")
        self.op("Sin", angles, name="sin")
        seen = self.op("LessOrEqual", self.op("Range", zero, stop, one), columns)
        hidden = self.op("Where", seen, self.put(np.float32(0)), self.put(np.float32(-1e9)))
        self.op("Unsqueeze", hidden, self.put(np.array([1])), name="bias")

    def model(self) -> Any:
        from onnx import TensorProto, helper

        embedding = self.put(self.weights["model.embed_tokens.weight"], name="model.embed_tokens.weight")
        self.places()
        hidden = self.op("Gather", embedding, "input_ids")
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            attended = self.attend(self.norm(hidden, f"{name}.input_layernorm.weight"), layer)
            hidden = self.op("Add", hidden, attended)
            wide = self.feed_forward(self.norm(hidden, f"{name}.post_attention_layernorm.weight"), layer)
            hidden = self.op("Add", hidden, wide)
        table = embedding if self.tied else self.put(self.weights["model.embed_tokens.weight"])
        head = self.op("Transpose", table, perm=[1, 0])
        logits = self.op("MatMul", self.norm(hidden, "model.norm.weight"), head)
        kind = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        self.op("Cast", logits, to=kind, name="logits")
        make, integers = helper.make_tensor_value_info, TensorProto.INT64
        cached = [f"{i}.{part}" for i in range(self.config["num_hidden_layers"]) for part in ("key", "value")]
        inputs = [make("input_ids", integers, ["b", "t"]), make("attention_mask", integers, ["b", "s"])]
        if self.positions:
            inputs.append(make("position_ids", integers, ["b", "t"]))
        shape = ["b", self.groups, "p", self.size]
        inputs += [make(f"past_key_values.{name}", kind, shape) for name in cached]
        outputs = [make("logits", kind, ["b", "t", self.config["vocab_size"]])]
        outputs += [make(f"present.{name}", kind, ["b", self.groups, "s", self.size]) for name in cached]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_standard_onnx(
    checkpoint: Path,
    folder: Path,
    *,
    positions: bool = True,
    half: bool = False,
    tied: bool = True,
    change: Callable[[Any], None] = lambda model: None,
) -> Path:
    """Write a checkpoint as optimum does: graph, weights in a file beside it, configuration, tokenizer."""
    import onnx

    folder.mkdir()
    model = StandardGraph(checkpoint, positions=positions, half=half, tied=tied).model()
    change(model)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    for source in checkpoint.iterdir():
        if source.suffix in (".json", ".jinja"):
            (folder / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def make_standard_onnx() -> Callable[..., Path]:
    """`write_standard_onnx`, for tests that need another graph."""
    return write_standard_onnx


@pytest.fixture(scope="session")
def tiny_standard_onnx(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32 as a graph of standard operators."""
    return write_standard_onnx(tiny_checkpoint, tmp_path_factory.mktemp("standard") / "onnx")


@pytest.fixture(scope="session")
def tiny_heldout(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out prompts with the tiny checkpoint's own greedy responses, as the prepare stage writes them."""
    from ammd.batch_decoding import decode_batch
    from ammd.runtime import torch_engine

    model = torch_engine.load_model(tiny_checkpoint)
    tokenizer = torch_engine.load_tokenizer(tiny_checkpoint)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    ids = [
        tokenizer(torch_engine.render_chat(tokenizer, chat, add_generation_prompt=True))["input_ids"]
        for chat in chats
    ]
    responses, _ = decode_batch(
        model, ids, max_new_tokens=12, end_token_ids={2}, choose=lambda logits, _rows: logits.argmax(-1)
    )
    path = tmp_path_factory.mktemp("heldout") / "heldout.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for prompt, prompt_ids, response in zip(PROMPTS, ids, responses, strict=True):
            row = {
                "prompt": prompt,
                "response": torch_engine.decode_text(tokenizer, response),
                "prompt_ids": prompt_ids,
                "response_ids": response,
                "reference": "a reference",
            }
            stream.write(json.dumps(row) + "\n")
    return path


class RuleEngine:
    """An engine whose next token is a function of the tokens so far. Tokens are bytes; 0 ends."""

    name = "rules"
    vocab_size = 256
    bos_token_id = None
    end_token_ids = frozenset({0})

    def __init__(self, rule: Callable[[list[int]], np.ndarray], *, context_tokens: int = 64) -> None:
        self.rule = rule
        self.context_tokens = context_tokens
        self.settings: Mapping[str, object] = {"threads": 1}
        self.sequence: list[int] = []
        self.prompts: list[list[int]] = []
        self.closed = False

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        return list(text.encode())

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token).decode(errors="replace")

    def text_stream(self) -> Callable[[int], str]:
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: decoder.decode(bytes([token]) if token else b"")

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        return "".join(f"{message['role'][0]}:{message['content']}|" for message in messages)

    def prefill(self, token_ids: Sequence[int]) -> np.ndarray:
        self.sequence = list(token_ids)
        self.prompts.append(list(token_ids))
        return self.rule(self.sequence)

    def decode(self, token_id: int) -> np.ndarray:
        self.sequence.append(token_id)
        return self.rule(self.sequence)

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[np.ndarray]:
        for stop in range(start + 1, len(token_ids) + 1):
            yield self.rule(list(token_ids[:stop]))[None]

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> RuleEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def says(text: str) -> Callable[[list[int]], np.ndarray]:
    """Return a rule that answers any prompt of one call with `text`, then ends."""
    answer = [*text.encode(), 0]
    state = {"prompt": 0}

    def rule(sequence: list[int]) -> np.ndarray:
        if len(sequence) < state["prompt"] or not state["prompt"]:
            state["prompt"] = len(sequence)
        logits = np.zeros(256, dtype=np.float32)
        logits[answer[min(len(sequence) - state["prompt"], len(answer) - 1)]] = 9
        return logits

    return rule


@pytest.fixture
def make_engine() -> Callable[..., RuleEngine]:
    """Build an engine from a rule."""
    return RuleEngine


@pytest.fixture
def saying() -> Callable[[str], RuleEngine]:
    """Build an engine that answers its first prompt with a fixed text."""
    return lambda text, **options: RuleEngine(says(text), **options)


@pytest.fixture
def few_packages(tmp_path: Path) -> Callable[..., Path]:
    """Write a Python command that finds this Python's standard library and a few named packages alone."""

    def few_packages(command: str, *, names: Sequence[str] = ("onnxruntime", "numpy", "tokenizers")) -> Path:
        site = tmp_path / f"{command}-packages"
        site.mkdir()
        for name in names:
            for file in importlib.metadata.files(name) or ():
                top = Path(file.parts[0])
                source = Path(str(file.locate())).parents[len(file.parts) - 1] / top
                if ".." not in file.parts and not (site / top).exists():
                    (site / top).symlink_to(source)
        path = tmp_path / command
        path.write_text(
            f'#!/bin/sh\nPYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{site}" exec {sys.executable} -S "$@"\n'
        )
        path.chmod(0o755)
        return path

    return few_packages
