from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from ammd.runtime.settings import BenchSettings, EvaluateSettings, VerifySettings


@pytest.mark.parametrize("kind", [VerifySettings, EvaluateSettings, BenchSettings])
def test_every_field_is_described(kind: type) -> None:
    assert all(field.description for field in kind.model_fields.values())


def test_limits_are_those_of_the_formats() -> None:
    assert VerifySettings().kl_limit_nats == {}


@pytest.mark.parametrize(
    ("kind", "values"),
    [(VerifySettings, {"texts": 0}), (EvaluateSettings, {"seed": -1}), (BenchSettings, {"thread": 1})],
)
def test_values_out_of_range_and_unknown_keys_are_refused(kind: type, values: dict) -> None:
    with pytest.raises(ValidationError):
        kind(**values)


def test_import_loads_no_engine() -> None:
    script = (
        "import sys, ammd.runtime.settings, ammd.runtime.verify, ammd.runtime.evaluate, ammd.runtime.bench\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'onnxruntime_genai', 'rouge_score', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
