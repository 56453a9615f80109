"""The packaged teacher with a trimmed vocabulary, exported in both formats and proven as any other."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ammd.export.schemes import Scheme
from ammd.export.settings import ExportSettings
from ammd.pipeline.recipe_document import BUILTIN, data_file
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.settings import VerifySettings

SCHEMES = (Scheme.GGUF_F16, Scheme.ONNX_INT4)


@pytest.fixture
def trimmed(smollm2_checkpoint: Path, tmp_path: Path) -> Path:
    """Six layers of SmolLM2 with the tokens of 300 prompts, and two held-out prompts with its answers beside it."""
    import torch

    from ammd.batch_decoding import decode_batch
    from ammd.conversations import read_conversations, render_prompt
    from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
    from ammd.distill.depth import cut_layers
    from ammd.distill.prompts import Example, write_examples
    from ammd.distill.trimming import trim_model, trim_tokenizer
    from ammd.distill.vocabulary import VocabularyPlan
    from ammd.distill.vocabulary_settings import VocabularySettings

    full = load_tokenizer(smollm2_checkpoint)
    model = load_model(smollm2_checkpoint, dtype=torch.float32)
    asked = read_conversations(data_file(BUILTIN, ("prepare", "prompts")))[:300]
    plan = VocabularyPlan(VocabularySettings(), model=model, tokenizer=full)
    kept = plan.choose(Counter(number for item in asked for number in render_prompt(full, item.messages)))
    short = trim_tokenizer(full, plan.bpe, kept.ids)
    trim_model(model, short.new_ids)
    cut_layers(model, [0, 1, 2, 27, 28, 29])  # the proofs are about tokens, and take a third of the time
    save_checkpoint(model, short.tokenizer, tmp_path / "trimmed")
    heldout = read_conversations(data_file(BUILTIN, ("prepare", "heldout")))[:2]
    ids = [render_prompt(short.tokenizer, item.messages) for item in heldout]
    end = short.tokenizer.eos_token_id
    answers, _ = decode_batch(
        model, ids, max_new_tokens=8, end_token_ids={end}, choose=lambda logits, _rows: logits.argmax(-1)
    )
    examples = [
        Example(
            prompt=item.prompt,
            response=short.tokenizer.decode(answer, skip_special_tokens=True),
            prompt_ids=prompt,
            response_ids=tuple(answer),
        )
        for item, prompt, answer in zip(heldout, ids, answers, strict=True)
    ]
    write_examples(tmp_path / "heldout.jsonl", examples)
    return tmp_path / "trimmed"


@pytest.mark.real
def test_files_of_a_trimmed_model_pass_the_proofs(trimmed: Path, tmp_path: Path) -> None:
    from ammd.export import stage as export
    from ammd.runtime.verify import VerifyInputs, measure_files

    rows = json.loads((trimmed / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert rows < 4000
    (tmp_path / "files").mkdir()
    made = export.run(
        export.ExportInputs(checkpoint=trimmed), ExportSettings(schemes=SCHEMES), tmp_path / "files"
    )["artifacts"]
    assert made[0]["bytes"] < 2 * (rows * 576 + 6 * 3_600_000) + (1 << 20)  # weights, and a small tokenizer
    artifacts = tuple(ArtifactRef(name=row["name"], path=tmp_path / "files" / row["path"]) for row in made)
    inputs = VerifyInputs(checkpoint=trimmed, heldout=tmp_path / "heldout.jsonl", artifacts=artifacts)
    # Raises for other ids on multilingual, code, digit and white-space text, other chats, BOS or end tokens.
    records = measure_files(inputs, VerifySettings(texts=2, greedy_prompts=2, greedy_tokens=4), tmp_path)
    assert records["gguf-f16"]["kl_nats"] < 1e-4  # float16 weights
    assert records["gguf-f16"]["greedy_equal"] == 2
    assert records["onnx-int4"]["kl_nats"] < 1  # int4: 0.2 to 0.4 on this model, a row out of place gives 10
    assert all(record["token_texts"] == 11 and record["chats"] >= 3 for record in records.values())
