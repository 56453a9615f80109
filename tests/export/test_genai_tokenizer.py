"""The spelled-out splitting rule gives the ids of the rule it stands for."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from ammd.export.genai_tokenizer import spell_out_digits

TEXTS = (
    "In 1984, 3.14 and 1,000,000; ١٢٣ ½ ² Ⅷ x2y",
    "  the\n\n in\tan  'tis it's we'll  ",
    "def f(x):\n    return x[12:34]  # ok",
    "Grüße 你好 🙂 e\u0301 \u00a0 end ",
)


def test_same_ids_and_no_digits_step_left(tiny_checkpoint: Path) -> None:
    document = json.loads((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    spelled = spell_out_digits(document)
    kinds = [step["type"] for step in spelled["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Split", "Split", "ByteLevel"]
    before, after = (Tokenizer.from_str(json.dumps(item)) for item in (document, spelled))
    for text in TEXTS:
        assert after.encode(text).ids == before.encode(text).ids
        # The pieces too: this vocabulary joins no digits, so its ids alone would not show a wrong cut.
        pieces = [
            [piece for piece, _ in side.pre_tokenizer.pre_tokenize_str(text)] for side in (before, after)
        ]
        assert pieces[1] == pieces[0]


def test_other_rules_are_left_alone() -> None:
    for rule in (None, {"type": "ByteLevel", "use_regex": True}, {"type": "Sequence", "pretokenizers": []}):
        assert spell_out_digits({"pre_tokenizer": rule, "model": 1}) == {"pre_tokenizer": rule, "model": 1}
