"""Commands about releases: bundle a run's files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from .cli_options import emit, examples, json_option, runs_option, screen_options

_PATH = click.Path(path_type=Path)


@click.command(
    epilog=examples(
        "ammd bundle quickstart --for android",
        "ammd bundle 3f9a --for desktop --files gguf-q8_0 --sign minisign.key -o release/tiny",
    )
)
@click.argument("run")
@click.option(
    "--for",
    "target",
    type=click.Choice(["android", "ios", "desktop"]),
    required=True,
    help="Where the files are to run: phones get the 4-bit GGUF and onnx-int4, desktops all.",
)
@click.option("--files", "names", multiple=True, metavar="NAME", help="Take this file; may be repeated.")
@click.option(
    "-o", "--out", type=_PATH, help="Folder to write, its .tar.zst beside it.  [default: NAME-TARGET]"
)
@click.option(
    "--sign",
    "key",
    type=_PATH,
    metavar="KEY",
    help="minisign secret key; its password is in AMMD_SIGN_PASSWORD.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@runs_option
@json_option
@screen_options
def bundle(
    run: str,
    target: Literal["android", "ios", "desktop"],
    names: tuple[str, ...],
    out: Path | None,
    key: Path | None,
    force: bool,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Pack a finished RUN's files for release.

    A folder and a .tar.zst with the models, manifest, model card and component list, the same to the byte whenever it
    is made. No file enters that misses its budget (exit code 7), is not proven (5) or was altered (3). `ammd verify`
    checks what comes out.
    """
    from .api import bundle as pack
    from .table import bundle_table

    document = pack(run, target=target, files=names, out=out, sign=key, force=force, runs_dir=runs_dir)
    emit(document, lambda: [bundle_table(document)], as_json=as_json)
    click.echo(document["archive"], err=True)


RELEASE = (bundle,)
