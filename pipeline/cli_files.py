"""Commands about single files: export a checkpoint; prove, judge and measure what came of it; talk to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ammd.errors import INTERRUPTED
from ammd.runtime.artifact_ref import EngineKind

from .cli_bench import bench
from .cli_eval import evaluate
from .cli_lm_eval import lm_eval
from .cli_options import (
    emit,
    engine_option,
    examples,
    json_option,
    screen_options,
    set_option,
)

_PATH = click.Path(path_type=Path)


@click.command(
    epilog=examples(
        "ammd export runs/quickstart/3f9a01c2/distill/student --out phone",
        "ammd export my-checkpoint --set schemes='[\"gguf-q8_0\"]' --json",
    )
)
@click.argument("checkpoint", type=_PATH)
@click.option("--out", type=_PATH, help="Folder to write.  [default: CHECKPOINT-export]")
@click.option("--imatrix", type=_PATH, help="Importance matrix to quantize with, llama.cpp's or ours.")
@click.option("--force", is_flag=True, help="Replace an export that is there.")
@set_option
@json_option
@screen_options
def export(
    checkpoint: Path,
    out: Path | None,
    imatrix: Path | None,
    force: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write CHECKPOINT as GGUF and ONNX files.

    `--set` takes the keys of a recipe's [export] section.
    """
    from .api import export_checkpoint
    from .table import files_table

    document = export_checkpoint(checkpoint, out=out, imatrix=imatrix, force=force, settings=overrides)
    emit(document, lambda: [files_table(document)], as_json=as_json)
    click.echo(document["path"], err=True)


@click.command(
    epilog=examples(
        "ammd verify student-q8_0.gguf --against student",
        "ammd verify tiny-android.tar.zst --public-key minisign.pub --unpack tiny",
    )
)
@click.argument("file", type=_PATH)
@click.option(
    "--against", type=_PATH, help="Checkpoint that the file came from.  [default: the run's student]"
)
@click.option(
    "--heldout",
    type=_PATH,
    help="JSONL of a prepare stage, or of prompts.  [default: the run's, else the packaged prompts]",
)
@click.option(
    "--public-key", metavar="KEY", help="Of a bundle: minisign key (file or line) that has to have signed it."
)
@click.option(
    "--unpack", type=_PATH, metavar="FOLDER", help="Of a bundle's archive: write its files there, if right."
)
@engine_option
@set_option
@json_option
@screen_options
def verify(
    file: Path,
    against: Path | None,
    heldout: Path | None,
    public_key: str | None,
    unpack: Path | None,
    engine: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prove FILE against its checkpoint, or check a bundle.

    Complete and unaltered, same sizes, token ids, chat template and end tokens; KL, top-1 agreement, perplexity,
    first divergence of greedy text. A file that lies in no run and is compared with nothing is looked at by
    itself: complete, its chats render, its text comes back from its tokens, it answers. `--set` takes the keys of a
    recipe's [verify] section.

    Of a bundle, folder or .tar.zst: every hash, nothing missing, nothing more, and with `--public-key` the signature.
    """
    from .bundle_manifest import is_bundle

    if is_bundle(file):
        _refuse_given(
            ["--against", "--heldout", "--engine", "--set"], [against, heldout, engine, overrides], "a model"
        )
        _verify_bundle(file, public_key=public_key, unpack=unpack, as_json=as_json)
        return
    _refuse_given(["--public-key", "--unpack"], [public_key, unpack], "a bundle")
    from .api import verify as prove
    from .table import facts_table

    document = prove(file, against=against, heldout=heldout, engine=engine, settings=overrides)
    emit(document, lambda: [facts_table(document["parity"], title="parity")], as_json=as_json)


def _refuse_given(options: Sequence[str], values: Sequence[object], kind: str) -> None:
    for option, value in zip(options, values, strict=True):
        if value:
            raise click.UsageError(f"`{option}` is for the check of {kind}, which FILE is not")


def _verify_bundle(bundle: Path, *, public_key: str | None, unpack: Path | None, as_json: bool) -> None:
    from .api import verify_bundle
    from .bundle_verify import describe

    found = verify_bundle(bundle, public_key=public_key, unpack=unpack)
    emit(found, lambda: [describe(found)], as_json=as_json)
    if unpack:
        click.echo(found["path"], err=True)


@click.command(
    epilog=examples(
        'ammd chat student-q8_0.gguf --prompt "What is a map for?"',
        "ammd chat runs/quickstart/3f9a01c2/export/onnx-int4 --temperature 0.7",
    )
)
@click.argument("artifact", type=_PATH)
@click.option("--prompt", help="Answer this and end; without it, one turn a line of standard input.")
@click.option("--system", help="System message that opens the conversation.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help="End the answer before this text; may be repeated.  [default: only at the model's own end tokens]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token; the next three say nothing then.",
)
@click.option(
    "--top-k",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Draw from this many likeliest tokens; 0 from all.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens that hold this much probability.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Draw from tokens at least this likely, as a share of the likeliest one's probability.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    show_default=True,
    help="Of all tokens in the conversation so far; above 1 they become less likely.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws, for each answer."
)
@click.option(
    "--context-tokens",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="Longest conversation; beyond it the oldest exchanges are dropped.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@engine_option
@screen_options
def chat(
    artifact: Path,
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    stop: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    context_tokens: int,
    threads: int | None,
    engine: str | None,
) -> None:
    """Talk to ARTIFACT, streaming.

    ARTIFACT is a GGUF file, an ONNX folder or a checkpoint folder. Ctrl-C ends an answer and keeps what was said;
    at the prompt it ends the chat. Penalty, temperature, top-k, top-p and min-p apply in this order, alike in
    every engine.
    """
    from ammd.runtime.chat import chat as talk
    from ammd.runtime.generate import Ends
    from ammd.runtime.sampling import Sampling

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    try:
        talk(
            artifact,
            prompt=prompt,
            turns=sys.stdin,
            out=sys.stdout,
            sampling=sampling,
            ends=Ends(max_new_tokens=max_tokens, stop_strings=stop),
            system=system,
            context_tokens=context_tokens,
            threads=threads,
            engine=EngineKind(engine) if engine else None,
        )
    except KeyboardInterrupt:  # caught here: no run is waiting to be continued
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


FILES = (export, verify, evaluate, bench, chat, lm_eval)
