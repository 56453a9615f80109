"""MODEL_CARD.md: a run's files for somebody who did not make them, with the front matter of the Hugging Face hub.

Everything in it is taken from the run's summary; what the run does not know is said to be unknown. Paths are relative
to the card, so that card and files can be copied together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .file_notes import file_notes
from .license_note import license_lines
from .match_note import match_note
from .page import read_part
from .recipe_document import BUILTIN, data_name

QUESTION = "Why is the sky blue?"
_EXPORT = "export"
_CONTEXT_TOKENS = 1024  # of the examples, at most
_FORMATS = {"gguf": "GGUF", "onnx-genai": "ONNX", "onnx": "ONNX"}
LOADERS = {
    "gguf": "llama.cpp",
    "onnx-genai": "onnxruntime-genai",
    "onnx": "onnxruntime",
}  # that it is made for


def render_card(
    summary: Mapping[str, Any],
    *,
    student_config: Mapping[str, Any],
    paths: Mapping[str, str] | None = None,
) -> str:
    """Return the card.

    Args:
        summary: The run's document; of a bundle, with only the artifacts in it.
        student_config: The student's config.json: of which kind it is, and the longest text that it reads.
        paths: Where each file lies in a bundle, by name; None where the card is for the run's own folder.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_part),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters["yaml"] = lambda text: json.dumps(text, ensure_ascii=False)  # is YAML as well
    text = environment.get_template("model_card.md.j2").render(
        summary=summary,
        recipe=summary["recipe"],
        name=summary["recipe"]["name"],
        question=QUESTION,
        context_tokens=_context_tokens(student_config),
        is_encoder_decoder=bool(student_config.get("is_encoder_decoder")),
        number=_number,
        measurement=_measurement,
        imatrix_path=f"{_EXPORT}/{summary['imatrix']['path']}" if summary["imatrix"] and not paths else None,
        recipe_path="manifest.json" if paths else "recipe.toml",
        **_files(summary, paths),
        **_origin(summary),
        match_note=match_note(summary),
        **_quality(summary),
    )
    return text.rstrip("\n") + "\n"


def read_student_config(checkpoint: Path) -> dict[str, Any]:
    """Return the config.json of a checkpoint."""
    found: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return found


def _context_tokens(config: Mapping[str, Any]) -> int:
    found = config.get("max_position_embeddings")
    return min(_CONTEXT_TOKENS, found) if isinstance(found, int) else _CONTEXT_TOKENS


def _files(summary: Mapping[str, Any], given: Mapping[str, str] | None) -> dict[str, Any]:
    rows = summary["artifacts"]
    paths = given or {row["name"]: f"{_EXPORT}/{Path(row['path']).name}" for row in rows}

    def smallest(kind: str) -> str | None:
        found = [row for row in rows if row["format"] == kind]
        return paths[min(found, key=lambda row: row["bytes"])["name"]] if found else None

    formats = list(dict.fromkeys(_FORMATS[row["format"]] for row in rows))
    loaders = list(dict.fromkeys(LOADERS[row["format"]] for row in rows))
    tags = [*(text.lower() for text in formats), *loaders]
    return {
        "paths": paths,
        "gguf": smallest("gguf"),
        "genai": smallest("onnx-genai"),
        "onnx": smallest("onnx"),
        "formats": " and ".join(formats),
        "library": loaders[0] if loaders else "transformers",
        "tags": [*tags, "distillation", "ammd"],
        "notes": {row["name"]: found for row in rows if (found := file_notes(row))},
        "proofs": {row["name"]: _proofs(row["parity"]) for row in rows},
        "machine": _machine(summary["measured_on"]),
    }


def _origin(summary: Mapping[str, Any]) -> dict[str, Any]:
    recipe, origin, training = summary["recipe"], summary["origin"] or {}, summary["training"]
    teacher, base = origin.get("teacher"), origin.get("base_model")
    source = teacher["source"] if teacher else _last_part(recipe["prepare"]["teacher"])
    cut, encoder = training.get("kept_layers"), training.get("kept_encoder_layers")
    shape = f" in {len(encoder)} encoder and {len(cut)} decoder layers" if encoder else ""
    shape = shape or (f" in {len(cut)} layers" if cut else "")
    heads, channels = training.get("kept_key_value_heads"), training.get("intermediate_size")
    width = [f"{len(heads[0])} key-value heads"] if heads else []
    width += [f"{channels:,} feed-forward channels"] if channels else []
    shape += f" with {' and '.join(width)} a layer" if width else ""
    prompts = data_name(recipe["prepare"], "prompts")
    written, train = training.get("teacher_written"), training.get("train_prompts")
    return {
        "origin": summary["origin"],
        "training": training,
        "teacher": teacher,
        "teacher_name": teacher["name"] if teacher else f"`{source}`",
        "base": base,
        "license": base["license"] if base else None,
        "license_lines": license_lines(base=base, teacher=teacher, prompts=prompts),
        "parameters": training.get("parameters"),
        "shape": shape,
        "student_text": _student(recipe["prepare"]["student"], base, training),
        "data": "ammd's own quickstart prompts" if prompts == BUILTIN else f"`{prompts}`",
        "writers": "all written by the teacher" if written == train else f"{written} of them by the teacher",
    }


def _student(wanted: Mapping[str, Any], base: Mapping[str, Any] | None, training: Mapping[str, Any]) -> str:
    if wanted["kind"] == "model":
        name = base["name"] if base else _last_part(wanted["source"])
        return f"the weights of {name} to begin with"
    stacks = [
        f"{len(cut)} of its {len(whole)}{stack}"
        for kept, influence, stack in (
            ("kept_encoder_layers", "encoder_block_influence", " encoder"),
            ("kept_layers", "block_influence", " decoder" if "kept_encoder_layers" in training else ""),
        )
        if (cut := training.get(kept)) and (whole := training.get(influence))
    ]
    layers = f"{' and '.join(stacks)} layers" if stacks else "fewer layers"
    sizes = [
        f"{wanted[key]} {text}"
        for key, text in (
            ("intermediate_size", "feed-forward channels"),
            ("key_value_heads", "key-value heads"),
        )
        if wanted.get(key) is not None
    ]
    kept = ", ".join(([layers] if stacks else []) + sizes) or layers
    return f"the teacher cut to {kept}"


def _quality(summary: Mapping[str, Any]) -> dict[str, Any]:
    judged = [row for row in (*summary["models"], *summary["artifacts"]) if row["quality"]]
    counts = sorted({row["quality"]["prompts"] for row in judged if "prompts" in row["quality"]})
    student: Mapping[str, Any] = next((row["quality"] for row in judged if row["name"] == "student"), {})
    return {
        "judged": judged,
        "judged_names": [row["name"] for row in judged],
        "judged_prompts": " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "few",
        "looping": student.get("looping_share"),
    }


def _number(facts: Mapping[str, Any] | None, key: str, form: str, times: float = 1) -> str:
    value = (facts or {}).get(key)
    return "–" if value is None else form % (value * times)


def _measurement(facts: Mapping[str, Any] | None) -> str:
    """Return how good the speed is, by the benchmark's own rule."""
    return "failed" if (facts or {}).get("failure") else (facts or {}).get("validity") or "–"


def _proofs(parity: Mapping[str, Any] | None) -> str:
    if not parity:
        return "–"
    faults = parity.get("faults") or ()
    return f"{len(faults)} failed" if faults else "passed"


def _machine(machine: Mapping[str, Any] | None) -> str:
    if machine is None:
        return "a machine of which the run has no record"
    cores, ram = machine["cores"], machine["ram_bytes"] / 2**30
    return f"{cores} cores of {machine['cpu'] or 'an unknown processor'}, {ram:.0f} GiB of memory"


def _last_part(source: str) -> str:
    """Return a source or file as it may be told to others: without the folders of this machine."""
    return source if source.startswith(("hub:", "pypi:")) else Path(source).name
