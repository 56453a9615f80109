"""What the commands share: options, where output goes, the examples that end each help text."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ammd.runtime.artifact_ref import EngineKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

DEFAULT_RUNS = Path("runs")


@dataclass(slots=True)
class Screen:
    """What the options say about output; filled by their callbacks, read where the program ends."""

    debug: bool = False


def screen_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--verbose`, `--quiet` and `--debug`."""

    def set_level(_ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
        if not given:
            if not logging.getLogger("ammd").handlers:
                _log_to_stderr(logging.INFO)
        elif parameter.name == "quiet":
            os.environ["AMMD_PROGRESS"] = "off"  # the stages' processes inherit both variables
            _log_to_stderr(logging.WARNING)
        else:
            os.environ["AMMD_VERBOSE"] = "1"
            _log_to_stderr(logging.DEBUG)

    def set_debug(ctx: click.Context, _parameter: click.Parameter, given: bool) -> None:
        ctx.find_root().obj.debug = given

    for flag, text, callback in (
        ("--debug", "Show the traceback of an error.", set_debug),
        ("--quiet", "No progress, warnings only.", set_level),
        ("--verbose", "Show what the tools underneath say.", set_level),
    ):
        option = click.option(flag, is_flag=True, expose_value=False, callback=callback, help=text)
        command = option(command)
    return command


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--runs-dir`."""
    return click.option(
        "--runs-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_RUNS,
        show_default=True,
        help="Folder of all runs.",
    )(command)


def engine_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--engine`."""
    return click.option(
        "--engine",
        type=click.Choice([kind.value for kind in EngineKind]),
        metavar="NAME",
        help="`onnxruntime` runs an ONNX folder without onnxruntime-genai.  [default: by the form of the file]",
    )(command)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--device` and what decides whether it is cool enough."""
    for option in (
        click.option(
            "--cool-down",
            type=click.IntRange(0),
            default=600,
            show_default=True,
            metavar="SECONDS",
            help="Longest wait for a device that is warmer.",
        ),
        click.option(
            "--max-celsius",
            type=click.FloatRange(0, 100),
            default=37.0,
            show_default=True,
            help="Warmest battery with which a process may begin on a device; Android must not throttle either.",
        ),
        click.option(
            "--python",
            metavar="COMMAND",
            help="The device's Python, for ONNX folders and `--engine`.  [default: python3]",
        ),
        click.option(
            "--device",
            metavar="TARGET",
            help="Measure there: `adb:SERIAL`, `ssh:USER@HOST[:PORT]` or `local`.  [default: here, in ammd's engines]",
        ),
    ):
        command = option(command)
    return command


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--set`."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated."
    )(command)


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--data`."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder in which tasks find their data.",
    )(command)


def sweep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what says how a sweep runs."""
    for option in (
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Make a sweep's stages on the nodes of this Ray cluster, `auto` or HOST:PORT, with `--jobs` and "
            "`--memory` for each; all see the runs folder and the data under one path.",
        ),
        click.option("--fail-fast", is_flag=True, help="End a sweep once one of its runs has failed."),
        click.option(
            "--sort",
            metavar="METRIC",
            help="Sort a sweep's runs by METRIC of the student, or MODEL.METRIC, the best first.",
        ),
        click.option(
            "--memory",
            metavar="SIZE",
            help="What a sweep's stages may take together, by estimate, as `12 GB`.  [default: what is free]",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            help="Stages of a sweep that are made at once; they divide the cores.  [default: 1]",
        ),
    ):
        command = option(command)
    return command


def read_share(
    _ctx: click.Context | None, _parameter: click.Parameter | None, text: str | None
) -> float | None:
    """Return a part of a whole, `5%` or `0.05`, as a fraction; a bare 5 could mean either and is refused.

    Raises:
        click.BadParameter: It is no share below 1.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text.strip(), flags=re.ASCII)
    fraction = float(found[1]) / (100 if found[2] else 1) if found else 1.0
    if fraction >= 1:
        raise click.BadParameter(f"{text!r} is no share below 1: write 5% or 0.05")
    return fraction


def examples(*lines: str) -> str:
    """Return the end of a help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def emit(document: dict[str, Any], tables: Callable[[], Iterable[RenderableType]], *, as_json: bool) -> None:
    """Print the one JSON document, or tables, on standard output."""
    if as_json:
        import json

        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    # Into a pipe or file there is no width to fit: rows stay whole.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for table in tables():
        console.print(table)


def _log_to_stderr(level: int) -> None:
    logger = logging.getLogger("ammd")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)
