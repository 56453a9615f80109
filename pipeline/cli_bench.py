"""The command that measures files: here, on another device, or under a phone's limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from .cli_options import (
    device_options,
    engine_option,
    examples,
    json_option,
    read_share,
    screen_options,
    set_option,
)

_PATH = click.Path(path_type=Path)
_EXCLUDING = (("profile", "baseline"), ("device", "profile"))
_NEEDING = (("max_regression", "baseline"), ("anchor", "profile"), ("python", "device"))


def _print_profiles(ctx: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Print all profiles where `list` is asked for, and end; else return the name."""
    if name == "list":
        from .profile_output import print_profiles

        print_profiles()
        ctx.exit()
    return name


@click.command(
    epilog=examples(
        "ammd bench student-q8_0.gguf onnx-int4 --baseline baseline.json --max-regression 5%",
        "ammd bench student-q4_0.gguf onnx-int4 --device ssh:pi@raspberrypi --format csv",
    )
)
@click.argument("files", nargs=-1, required=True, type=_PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv", "md", "sql"]),
    help="The last four have a row for each model, thread count and test, with llama-bench's columns and more.  "
    "[default: table]",
)
@click.option("--baseline", type=_PATH, help="What an earlier `ammd bench --json` printed; compare with it.")
@click.option(
    "--max-regression", callback=read_share, metavar="SHARE", help="How much worse is allowed.  [default: 5%]"
)
@click.option(
    "--profile",
    metavar="NAME",
    is_eager=True,
    callback=_print_profiles,
    help="Instead: run under this phone's limits here, and project its speed. `list` prints all.",
)
@click.option(
    "--anchor", metavar="FILE", help="Measured on that phone: a `bench --json`, or MODEL=TOKENS_PER_S."
)
@device_options
@engine_option
@set_option
@json_option
@screen_options
@click.pass_context
def bench(
    context: click.Context,
    files: tuple[Path, ...],
    form: str | None,
    baseline: Path | None,
    max_regression: float | None,
    profile: str | None,
    anchor: str | None,
    device: str | None,
    python: str | None,
    max_celsius: float,
    cool_down: int,
    engine: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure speed and memory of FILES.

    Cold and warm start, time to first token, prefill and decode speed, memory, each in processes of its own, beside
    the speed that the architecture and this machine's memory allow, and how good the measurement is. `--set` takes
    the keys of a recipe's [bench] section. The exit code is 6 where a file could not be measured; the others are.
    With `--baseline`, each number gets a verdict, and the exit code is 7 where the whole 95 % interval of a ratio is
    worse than allowed, 6 where the two cannot be compared. With `--device`, llama.cpp's `llama-bench` measures GGUF
    files on a phone, a board or another host, and the Python that is there ONNX folders, and what `--engine` names.
    """
    asked = "json" if as_json else form or "table"
    _check_options(context.params)
    from ammd.runtime.settings import BenchSettings

    from .alone import named
    from .bench_files import MAX_REGRESSION, bench_files
    from .bench_output import report
    from .recipe import load_section

    settings = load_section(BenchSettings, overrides)
    if profile is not None:
        from .profile_output import run_profile

        run_profile(profile, named(files, engine=engine), settings=settings, anchor=anchor, form=asked)
        return
    if settings.profiles:
        raise click.UsageError("`profiles` is for recipes; `--profile NAME` does the same here")
    allowed = MAX_REGRESSION if max_regression is None else max_regression
    if device is not None:
        from .on_device import bench_on_device

        judged = bench_on_device(
            files,
            settings,
            device=device,
            engine=engine,
            python=python,
            heat=(max_celsius, cool_down),
            baseline=baseline,
            max_regression=allowed,
        )
    else:
        judged = bench_files(
            files, settings=settings, engine=engine, baseline=baseline, max_regression=allowed
        )
    report(judged, form=asked)


def _check_options(given: Mapping[str, object]) -> None:
    """Check that options which say where and against what to measure fit together.

    Raises:
        UsageError: Two exclude each other, or one needs another.
    """
    if given["as_json"] and given["form"] not in (None, "json"):
        raise click.UsageError(f"`--json` and `--format {given['form']}` exclude each other")
    for name, needed in _NEEDING:
        if given[name] is not None and not given[needed]:
            raise click.UsageError(f"`{_option(name)}` needs `{_option(needed)}`")
    for name, other in _EXCLUDING:
        if given[name] and given[other]:
            raise click.UsageError(f"`{_option(name)}` and `{_option(other)}` exclude each other")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
