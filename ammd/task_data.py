"""The rows of a task: read from its file below the data folder or from a hub, filled into its prompt, checked.

Rows to judge on are drawn by a hash of what they hold: the same ones whatever the file's order, and fewer of them are
a part of more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact import hash_file, hash_text
from .errors import DataError, RecipeError
from .json_lines import check_unicode, read_objects
from .task import HubData, Split, Task, TaskKind
from .task_hub import check_reader, copied_files, local_copy, read_hub_rows
from .task_template import as_text, fill, look_up


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One question with its right answers."""

    prompt: str  # the text of the user's message
    references: tuple[str, ...]  # at least one; the first is what a student may be trained on
    choices: tuple[str, ...]  # empty where the task has none
    line: int  # in the file, from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDigest:
    """What was read, so that two scores can be told to be of the same questions."""

    task: str
    version: int
    split: Split
    source: str  # file below the data folder, or `hub:ID@REVISION`
    source_sha256: str | None  # of the file, or of all files of a copy; None where the revision pins it
    template_sha256: str  # of the prompt's template
    rows: int
    rows_sha256: str  # of every prompt with its references and choices, in order


def read_task_rows(
    task: Task, split: Split, *, data: Path | None, limit: int | None = None
) -> tuple[TaskRow, ...]:
    """Read a split's rows in the file's order: to train on, all; to judge on, those that `task.rows` draws.

    Args:
        task: Whose rows.
        split: Which of its splits.
        data: The data folder; None where the task fetches its rows from a hub.
        limit: Draw no more than this many.

    Raises:
        RecipeError: The task has no such split, no data folder is named, or it is a hub's and what reads these is not
            installed.
        DataError: The folder or the file is missing, or a row is not what the task says (named by its line).
    """
    files, hub = task_files(task, split, data=data), _hub(task, split)
    place = f"split `{hub.splits[split]}` of `{hub.id}`" if hub else f"`{files[0]}`"
    found: Iterable[tuple[int, Mapping[str, Any]]] = (
        read_hub_rows(hub, split, data=data) if hub else read_objects(files[0])
    )
    drawn = []
    for line, fields in found:
        row = _to_row(task, fields, where=f"{place} {'row' if hub else 'line'} {line}", line=line)
        drawn.append((_draw_key(task, fields), line, row))
    if not drawn:
        raise DataError(f"{place} holds no rows", hint=f"docs/tasks.md shows what task `{task.name}` reads")
    counts = [len(drawn), limit, None if split == "train" else task.rows]
    kept = sorted(drawn, key=lambda item: item[:2])[: min(count for count in counts if count is not None)]
    return tuple(row for _, _, row in sorted(kept, key=lambda item: item[1]))


def digest_rows(task: Task, split: Split, rows: Sequence[TaskRow], *, data: Path | None) -> TaskDigest:
    """Return the digest of rows that `read_task_rows` returned.

    Raises:
        RecipeError: The task has no such split.
        DataError: A file is not there any more.
    """
    hub = _hub(task, split)
    hashes = [hash_file(path) for path in task_files(task, split, data=data)]
    content = [[row.prompt, row.references, row.choices] for row in rows]
    return TaskDigest(
        task=task.name,
        version=task.version,
        split=split,
        source=f"hub:{hub.id}@{hub.revision}" if hub else task.data[split],
        source_sha256=hashes[0] if len(hashes) == 1 else hash_text("\n".join(hashes)) if hashes else None,
        template_sha256=hash_text(task.prompt),
        rows=len(rows),
        rows_sha256=hash_text(json.dumps(content, ensure_ascii=False)),
    )


def task_files(task: Task, split: Split, *, data: Path | None) -> tuple[Path, ...]:
    """Return the files of the data folder that a split is read from; none where it is fetched from a hub.

    Raises:
        RecipeError: The task has no such split, no data folder is named, or it is a hub's and what reads these is not
            installed.
        DataError: The data folder is missing, or the file in it.
    """
    hub = _hub(task, split)
    if data is not None and not data.is_dir():
        raise DataError(f"no data folder at `{data}`", path=str(data))
    if hub is not None:
        check_reader(hub)
        folder = local_copy(hub, data)
        return copied_files(folder) if folder else ()
    name = task.data[split]
    if data is None:
        raise RecipeError(
            f"task `{task.name}` reads `{name}` below a data folder, and none is named",
            hint='name it with `--data DIR`, or `data = "DIR"` in the recipe',
        )
    if not (data / name).is_file():
        raise DataError(
            f"no data file at `{data / name}`",
            hint=f"task `{task.name}` looks for `{name}` below the data folder",
            path=str(data / name),
        )
    return (data / name,)


def _hub(task: Task, split: Split) -> HubData | None:
    """Return where on a hub a split is; None where a file holds it."""
    if split in task.data:
        return None
    if task.hub is not None and split in task.hub.splits:
        return task.hub
    raise RecipeError(f"task `{task.name}` has no split `{split}`, only {', '.join(task.splits)}")


def _to_row(task: Task, fields: Mapping[str, Any], *, where: str, line: int) -> TaskRow:
    """Return a row's texts.

    Raises:
        DataError: A field is missing or of another type, or a reference is empty or no right answer of this task.
    """
    try:
        prompt = fill(task.prompt, fields)
        field = _reference_field(task, fields)
        references = _texts(look_up(fields, field), field)
        choices = (
            _texts(look_up(fields, task.choices_field), task.choices_field)
            if task.choices_field
            else task.choices
        )
    except KeyError as exc:
        raise DataError(
            f"{where} has no field `{exc.args[0]}`",
            hint=f"its fields are {json.dumps(list(fields))}",
            line=line,
        ) from exc
    except TypeError as exc:
        raise DataError(f"{where}: `{exc.args[0]}` holds no text", line=line) from exc
    check_unicode((prompt, *references, *choices), where, line)
    if fault := next(_faults(task, prompt, references, choices), None):
        raise DataError(f"{where}: {fault}", line=line)
    return TaskRow(prompt=prompt, references=references, choices=choices, line=line)


def _faults(task: Task, prompt: str, references: Sequence[str], choices: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with a row's texts."""
    if not prompt.strip() and task.kind is not TaskKind.PERPLEXITY:
        yield "the prompt is empty"
    if not references or not all(text.strip() for text in references):
        yield "a reference is empty"
    if task.kind is TaskKind.CHOICE and len(set(choices)) < max(2, len(choices)):
        yield f"the choices {json.dumps(choices, ensure_ascii=False)} are not two or more different ones"
    for text in references:
        if choices and text not in choices:
            yield f"the reference `{text}` is none of the choices {json.dumps(choices, ensure_ascii=False)}"
        if task.kind is TaskKind.EXACT and not re.search(task.answer_pattern, text):
            yield f"`answer_pattern` finds no answer in the reference `{text}`"


def _reference_field(task: Task, fields: Mapping[str, Any]) -> str:
    """Return the first of the task's fields for references that the row has.

    Raises:
        KeyError: The row has none of them.
    """
    for field in task.references:
        try:
            if look_up(fields, field) is not None:
                return field
        except KeyError:
            continue
    raise KeyError(" or ".join(task.references))


def _texts(value: Any, field: str) -> tuple[str, ...]:
    return tuple(as_text(item, field) for item in (value if isinstance(value, list) else [value]))


def _draw_key(task: Task, fields: Mapping[str, Any]) -> str:
    """Return the hash by which a row is drawn: of its own fields, so that another wording of the prompt keeps them."""
    names = {*task.prompt_fields, _reference_field(task, fields)}
    return hash_text(json.dumps({name: look_up(fields, name) for name in names}, sort_keys=True))
