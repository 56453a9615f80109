from __future__ import annotations

import pytest
from pydantic import ValidationError

from ammd.export.settings import ExportSettings, Scheme


def test_default_is_every_scheme() -> None:
    assert ExportSettings().schemes == tuple(Scheme)


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
