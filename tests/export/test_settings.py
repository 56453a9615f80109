from __future__ import annotations

import pytest
from pydantic import ValidationError

from ammd.export.schemes import GGUF_SCHEMES, Scheme, mix_of, needs_imatrix
from ammd.export.settings import ExportSettings


def test_every_gguf_type_of_the_pinned_llama_cpp_has_a_name() -> None:
    import llama_cpp

    for scheme in GGUF_SCHEMES:
        if mix := mix_of(scheme):
            assert hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix.file_type}"), scheme


@pytest.mark.parametrize("scheme", ["gguf-iq2_xs", "gguf-iq1_s", "gguf-iq3_xxs", "gguf-q2_k_s"])
def test_types_that_llama_cpp_refuses_without_a_matrix_are_refused(scheme: str) -> None:
    with pytest.raises(ValidationError, match=f"`{scheme}` cannot be made without an importance matrix"):
        ExportSettings.model_validate({"schemes": [scheme]})
    assert ExportSettings.model_validate({"schemes": [scheme], "imatrix": {}}).imatrix is not None


def test_others_do_not_need_one() -> None:
    others = [one for one in Scheme if not needs_imatrix(one) and one is not Scheme.GGUF_MIXED]
    assert ExportSettings.model_validate({"schemes": others}).imatrix is None
    assert Scheme.GGUF_IQ3_XS in others


def test_unknown_scheme_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        ExportSettings.model_validate({"schemes": ["gguf-q3"]})
    (fault,) = caught.value.errors()
    assert fault["loc"] == ("schemes", 0)
    assert all(scheme.value in fault["msg"] for scheme in Scheme)


@pytest.mark.parametrize(
    ("schemes", "message"),
    [([], "name at least one scheme"), (["onnx-int4", "onnx-int4"], "named twice")],
)
def test_empty_or_repeated_schemes_are_refused(schemes: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExportSettings.model_validate({"schemes": schemes})


def test_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ExportSettings.model_validate({"scheme": ["onnx-int4"]})


@pytest.mark.parametrize(
    ("document", "reads"),
    [
        ({}, False),
        ({"imatrix": {}}, True),
        ({"imatrix": {"texts": ["a.txt"]}}, False),
        ({"schemes": ["gguf-mixed"], "mixed": {"bits": 5}}, True),
        ({"schemes": ["gguf-mixed"], "mixed": {"bits": 5}, "imatrix": {"texts": ["a.txt"]}}, False),
    ],
)
def test_training_texts_are_read_only_where_nothing_else_is_named(
    document: dict[str, object], reads: bool
) -> None:
    assert ExportSettings.model_validate(document).reads_texts is reads


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        (["onnx-int4"], "is for the `onnx-standard` schemes, none of which is named"),
        (["onnx-standard-int8", "onnx-standard-fp16"], "cannot be had of `onnx-standard-fp16`"),
    ],
)
def test_the_ort_format_is_refused_where_it_has_no_use(schemes: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExportSettings.model_validate({"schemes": schemes, "onnx": {"ort_format": True}})
    assert ExportSettings.model_validate({"schemes": ["onnx-standard-int8"], "onnx": {"ort_format": True}})
