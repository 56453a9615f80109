"""`ammd lm-eval`: everything after the file is the harness's own command line."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_options import examples, screen_options


@click.command(
    name="lm-eval",
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "ammd lm-eval student-q4_k_m.gguf --tasks arc_easy,gsm8k --limit 200 --output_path results",
        "ammd lm-eval onnx-int4 --include_path my-tasks --tasks mine --model_args threads=2,max_length=1024",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("harness_options", nargs=-1, type=click.UNPROCESSED)
@screen_options
def lm_eval(file: Path, harness_options: tuple[str, ...]) -> None:
    """Score FILE with lm-evaluation-harness (extra `lm-eval`).

    HARNESS_OPTIONS are those of the harness's `lm-eval run`, such as `--tasks`, `--num_fewshot`, `--gen_kwargs`,
    `--apply_chat_template`, `--use_cache`, `--log_samples`; `ammd lm-eval FILE --help` lists them. `--model_args`
    takes engine, threads, max_length, max_gen_toks, add_bos_token and prefix_token_id.
    """
    from ammd.runtime.lm_eval_command import run_lm_eval

    run_lm_eval(file, harness_options)
