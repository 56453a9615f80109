from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ArtifactError, ParityError
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.settings import VerifySettings
from ammd.runtime.verify import VerifyInputs, artifact_name, judge, run, verify_file

SMALL = VerifySettings(texts=2, greedy_prompts=2, greedy_tokens=6)
F16 = ArtifactRef(name="gguf-f16", path=Path("student-f16.gguf"))
GOOD: dict[str, Any] = {"faults": [], "kl_nats": 1e-5, "max_logit_error": 0.1, "divergences": []}
PLACE = {"prompt": 3, "step": 7, "expected": "a", "found": "b", "logit_gap": 0.5, "explained": False}


def test_stage_writes_what_it_returns(
    tiny_checkpoint: Path, tiny_gguf: Path, tiny_heldout: Path, tmp_path: Path
) -> None:
    artifacts = (ArtifactRef(name="gguf-f16", path=tiny_gguf),)
    inputs = VerifyInputs(checkpoint=tiny_checkpoint, heldout=tiny_heldout, artifacts=artifacts)
    results = run(inputs, SMALL, tmp_path)
    assert results["parity"]["gguf-f16"]["kl_nats"] < 1e-6
    assert results["parity"]["gguf-f16"]["kl_limit_nats"] == 1e-3
    assert json.loads((tmp_path / "parity.json").read_text()) == results["parity"]
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


def test_a_folder_is_proven_in_the_engine_that_is_asked_for(tiny_onnx: Path) -> None:
    record = verify_file(
        tiny_onnx, against=None, heldout=None, settings=SMALL, engine=EngineKind.ONNX_RUNTIME
    )
    assert record["engine"].startswith("onnxruntime 1.")


def test_file_over_its_limit_is_refused(
    tiny_checkpoint: Path, tiny_heldout: Path, make_gguf: Callable, tmp_path: Path
) -> None:
    path = make_gguf(tiny_checkpoint, tmp_path / "student-f16.gguf", noise=0.1)
    with pytest.raises(ParityError, match=r"`gguf-f16` \(student-f16.gguf\).*KL is .* the limit is 0.001"):
        verify_file(path, against=tiny_checkpoint, heldout=tiny_heldout, settings=SMALL)


def test_missing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    artifacts = (ArtifactRef(name="a", path=tmp_path / "gone.gguf"),)
    inputs = VerifyInputs(checkpoint=tmp_path, heldout=tmp_path, artifacts=artifacts)
    with pytest.raises(ArtifactError, match="no model at"):
        run(inputs, SMALL, tmp_path)


def test_faults_are_refused_with_their_number() -> None:
    with pytest.raises(ParityError, match=r"checkpoint: first \(and 1 more\)") as caught:
        judge(F16, {"faults": ["first", "second"]}, limit=None)
    assert caught.value.exit_code == 5
    assert caught.value.facts["artifact"] == "gguf-f16"


def test_unexplained_divergence_is_refused_where_there_is_a_limit() -> None:
    record = {**GOOD, "divergences": [PLACE]}
    with pytest.raises(ParityError, match=r"prompt 3 parts at token 7 \('b' for 'a'\).*0.5 apart.* is 0.1"):
        judge(F16, record, limit=1e-3)
    assert judge(F16, record, limit=None)["kl_limit_nats"] is None
    explained = {**GOOD, "divergences": [{**PLACE, "explained": True}]}
    assert judge(F16, explained, limit=1e-3)["kl_limit_nats"] == 1e-3


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ParityError, match="not numbers"):
        judge(F16, {**GOOD, "kl_nats": float("nan")}, limit=None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("student-q4_k_m.gguf", "gguf-q4_k_m"), ("my-Model-Q8_0.gguf", "gguf-q8_0"), ("onnx-int4", "onnx-int4")],
)
def test_scheme_is_read_from_the_file_name(name: str, expected: str) -> None:
    assert artifact_name(Path("x") / name) == expected
