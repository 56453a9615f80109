from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ArtifactError, ExportError
from ammd.export.genai_config import end_token_ids, mend_genai_folder
from ammd.export.genai_tokenizer import spell_out_digits


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What the builder leaves: one end token as a number, its own sampling defaults."""
    folder = tmp_path / "built"
    folder.mkdir()
    document = {
        "model": {"context_length": 512, "eos_token_id": 0, "pad_token_id": None},
        "search": {"do_sample": False, "max_length": 99, "temperature": 1.0, "top_k": 50},
    }
    (folder / "genai_config.json").write_text(json.dumps(document))
    return folder


def _change(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text())
    document = {key: value for key, value in (document | values).items() if value is not None}
    path.write_text(json.dumps(document))


def _read(folder: Path, name: str = "genai_config.json") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / name).read_text())
    return document


def test_end_tokens_come_from_template_tokenizer_and_configs(checkpoint: Path) -> None:
    _change(checkpoint / "tokenizer_config.json", eos_token="<|endoftext|>")
    _change(checkpoint / "generation_config.json", eos_token_id=[7, 2])
    _change(checkpoint / "config.json", eos_token_id=9)
    # <|im_end|> = 2 after the assistant's text, <|endoftext|> = 0, then 7 and 9 from the configs.
    assert end_token_ids(checkpoint) == (2, 0, 7, 9)


def test_template_that_refuses_leaves_the_other_sources(checkpoint: Path) -> None:
    template = "{{ raise_exception('system first') }}"
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    _change(checkpoint / "tokenizer_config.json", chat_template=template)
    assert end_token_ids(checkpoint) == (2,)


def test_template_without_an_end_of_turn_adds_nothing(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    _change(checkpoint / "tokenizer_config.json", chat_template=template)
    assert end_token_ids(checkpoint) == (2,)


def test_end_tokens_are_a_list_and_context_is_the_limit(built: Path, checkpoint: Path) -> None:
    mend_genai_folder(built, checkpoint)
    config = _read(built)
    assert config["model"]["eos_token_id"] == [2]
    assert config["model"]["pad_token_id"] == 2
    assert config["search"]["max_length"] == 512


def test_sampling_defaults_are_the_models_own(built: Path, checkpoint: Path) -> None:
    _change(checkpoint / "generation_config.json", do_sample=True, temperature=0.2, top_p=0.9)
    mend_genai_folder(built, checkpoint)
    search = _read(built)["search"]
    found = {key: search[key] for key in ("do_sample", "temperature", "top_p", "top_k")}
    assert found == {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 50}


def test_tokenizer_files_are_the_checkpoints_own(built: Path, checkpoint: Path) -> None:
    mend_genai_folder(built, checkpoint)
    if (checkpoint / "chat_template.jinja").exists():
        template = (checkpoint / "chat_template.jinja").read_bytes()
        assert (built / "chat_template.jinja").read_bytes() == template
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert _read(built, "tokenizer.json") == spell_out_digits(document)
    assert _read(built, "tokenizer_config.json")["model_max_length"] == 512
    assert (
        "chat_template" in _read(built, "tokenizer_config.json") or (built / "chat_template.jinja").exists()
    )


def test_class_name_of_transformers_5_becomes_one_that_all_know(built: Path, checkpoint: Path) -> None:
    _change(checkpoint / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    mend_genai_folder(built, checkpoint)
    assert _read(built, "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_model_that_would_never_stop_is_refused(built: Path, checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    _change(checkpoint / "tokenizer_config.json", eos_token=None, chat_template=None)
    _change(checkpoint / "config.json", eos_token_id=None)
    (checkpoint / "generation_config.json").unlink()
    with pytest.raises(ExportError, match="names no end token"):
        mend_genai_folder(built, checkpoint)


def test_missing_configuration_is_an_artifact_error(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no `genai_config\.json`"):
        mend_genai_folder(tmp_path, checkpoint)
