"""Train from a prepared folder, outside any run: what torchrun starts on several processes or machines.

    torchrun --nproc_per_node 2 -m ammd.distill PREPARED OUT --settings distill.toml

Every process runs this; the first one writes. `docs/scaling.md` says more.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path

import click
from pydantic import ValidationError

from ammd.errors import AmmdError

from .settings import DistillSettings

_UNFINISHED = frozenset({"curves.jsonl", "warm"})  # in a folder that has no student yet


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prepared", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML: the table [distill].",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Folder for snapshots; started again with it, a killed training goes on.",
)
def main(prepared: Path, out: Path, settings: Path | None, resume: Path | None) -> None:
    r"""Train the student of PREPARED (what the prepare stage wrote) and write it into OUT, a new folder.

    \b
    Examples:
      python -m ammd.distill runs/mine/prepare trained
      torchrun --nproc_per_node 2 -m ammd.distill runs/mine/prepare trained --resume state
    """
    first = os.environ.get("RANK", "0") == "0"
    try:
        _train(prepared, out, settings, resume, first=first)
    except AmmdError as exc:
        if first:  # every process comes to the same error
            click.echo(f"error: {exc}" + (f"\nhint: {exc.hint}" if exc.hint else ""), err=True)
        sys.exit(exc.exit_code)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is written. gloo's threads may outlive what they use while the interpreter takes itself apart, and
        # abort a process that is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _train(prepared: Path, out: Path, settings: Path | None, resume: Path | None, *, first: bool) -> None:
    from . import stage
    from .fleet import Fleet

    wanted = _read(settings) if settings else DistillSettings()
    if first:
        _clear(out, unfinished=resume is not None)
    stage.run(stage.DistillInputs(prepared=prepared, resume=resume), wanted, out)
    Fleet().leave()
    if first:
        click.echo(str(out))


def _clear(out: Path, *, unfinished: bool) -> None:
    """Make `out` an empty folder; of an unfinished training, remove what its snapshot holds or the next one writes."""
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if found and not (unfinished and found <= _UNFINISHED):
        raise click.UsageError(f"`{out}` is not empty")
    if found:
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _read(path: Path) -> DistillSettings:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return DistillSettings.model_validate(document.get("distill", document))
    except tomllib.TOMLDecodeError as exc:
        raise click.UsageError(f"`{path}` is not TOML: {exc}") from exc
    except ValidationError as exc:
        faults = [f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}" for fault in exc.errors()]
        raise click.UsageError(f"`{path}`: {'; '.join(faults)}") from exc


if __name__ == "__main__":
    main()
