"""The command line. Standard output is data (a table, or one JSON document); the rest goes to standard error.

Every command parses, calls one function and prints what it returned. Libraries are imported inside the
commands, so `ammd --help` costs no more than click. Errors end in `error:` and `hint:` and the exit code of
their class; `--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import click

import ammd
from ammd.durable import disk_full, is_disk_full
from ammd.errors import AmmdError, ArtifactError

from .cli_files import FILES
from .cli_options import Screen, examples
from .cli_release import RELEASE
from .cli_runs import LOOKING, PATH
from .end_signals import ending_in_order, exit_code_of


def main() -> None:
    """Run the command line and exit with its code."""
    screen = Screen()
    try:
        with ending_in_order():
            code = ammd_command.main(obj=screen, standalone_mode=False)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "ammd"
        _fail(exc.format_message(), f"`{command} --help` shows how it is used", 2)
    except click.ClickException as exc:
        _fail(exc.format_message(), "", exc.exit_code)
    except AmmdError as exc:
        if screen.debug:
            click.echo(exc.facts.get("traceback") or traceback.format_exc(), err=True)
        _fail(str(exc), exc.hint, exc.exit_code)
    except (KeyboardInterrupt, click.Abort) as exc:
        code = exit_code_of(exc.__cause__ or exc)  # click wraps it
        _fail("interrupted; the next `ammd run` continues with the stage that was cut off", "", code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no second error when Python ends
        sys.exit(1)
    except OSError as exc:
        if screen.debug:
            click.echo(traceback.format_exc(), err=True)
        fault = _system_fault(exc)
        _fail(str(fault), fault.hint, fault.exit_code)
    except Exception as exc:
        if screen.debug:
            raise
        _fail(f"{type(exc).__name__}: {exc}", "this is a defect; `--debug` shows where", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _system_fault(error: OSError) -> ArtifactError:
    """Return what the system refused, as an error of ours: who owns the disk or the folder can act."""
    if is_disk_full(error):
        place = Path(os.fsdecode(error.filename)).parent if error.filename else Path.cwd()
        return disk_full(place, doing="`ammd` was writing")
    where = f"`{os.fsdecode(error.filename)}`: " if isinstance(error.filename, str | bytes) else ""
    return ArtifactError(f"{where}{error.strerror or error}")


def _fail(message: str, hint: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    sys.exit(code)


class _PathOrder(click.Group):
    """Lists the commands in the order of the path instead of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return names as they were added."""
        return list(self.commands)


@click.group(
    name="ammd",
    cls=_PathOrder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("ammd run", "ammd chat runs/quickstart/*/export/student-q8_0.gguf"),
)
@click.version_option(ammd.__version__, prog_name="ammd")
@click.pass_context
def ammd_command(ctx: click.Context) -> None:
    """Distill a small language model, export it to GGUF and ONNX, prove the files and measure them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (*PATH, *FILES, *RELEASE, *LOOKING):
    ammd_command.add_command(_command)
