"""`nanozoo generate`: from its flags to text on the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from nanozoo_core.commands.run_arguments import Commands, add_run_arguments, load, model_values
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import write_text
from nanozoo_core.machine.paths import path_argument
from nanozoo_core.machine.terminal import out, warn, write
from nanozoo_core.python.generation import (
    CONTINUATION_TOKENS,
    DTYPES,
    MIDDLE_TOKENS,
    NUM_DRAFTS,
    TextRequest,
    write_pieces,
    write_samples,
)

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("generate", help="generate text from a run")
    add_run_arguments(parser)
    parser.add_argument(
        "--prompt",
        default="",
        help="text to continue; empty starts a document, and - is what stands on standard input, "
        "without a line break at its end",
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="go on with each line that is typed; an empty one lets the model write on, Ctrl-C "
        "stops its text and Ctrl-D ends",
    )
    parser.add_argument(
        "--json", action="store_true", help="write each sample as a line of JSON, when it is whole"
    )
    parser.add_argument(
        "--suffix", default="", help="text that follows: fill the middle (diffusion models)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        help=f"the most new tokens (default: {CONTINUATION_TOKENS}), or with --suffix their exact "
        f"number (default: {MIDDLE_TOKENS})",
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        help="draw from so many of the likeliest tokens; 0 switches it off",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that reach this probability; 1 switches it off",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first sample; each further one adds 1"
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        help="how many texts to draw; decoded "
        "together where the model writes from left to right and nothing is drafted",
    )
    parser.add_argument(
        "--num-steps",
        type=int,
        help="denoising steps of diffusion models, iterations of recurrent ones",
    )
    parser.add_argument(
        "--trace",
        type=path_argument,
        metavar="FILE.html",
        help="show the steps in a page (diffusion models)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="recompute everything for every token (slow)"
    )
    parser.add_argument(
        "--speculative",
        action="store_true",
        help="check several tokens at once, where the model can propose them; sampled text keeps "
        "its distribution, and greedy text stays the same",
    )
    parser.add_argument(
        "--draft",
        type=path_argument,
        metavar="RUN",
        help="a smaller run of the same vocabulary, which proposes tokens that this one checks "
        "several at a time, as with --speculative",
    )
    parser.add_argument(
        "--num-drafts", type=int, default=NUM_DRAFTS, help="how many tokens --draft proposes"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="of the weights in products; auto takes bfloat16 on a CPU where a probe finds it "
        "faster, and says so",
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    """Draws as the arguments say and writes to stdout.

    Raises: ConfigError for flags that do not go together or that the model cannot serve.
    """
    from nanozoo_core.commands.interactive import continue_lines
    from nanozoo_core.generation.speculative import Tally
    from nanozoo_core.generation.trace import Trace, trace_page

    _check_flags(arguments)
    seeds = range(arguments.seed, arguments.seed + arguments.num_samples)
    request = _request(arguments)
    traces = [Trace(f"seed {seed}") for seed in seeds]
    is_traced = arguments.trace is not None
    if is_traced and not arguments.trace.absolute().parent.is_dir():
        raise ConfigError(f"--trace {arguments.trace}: there is no folder {arguments.trace.parent}")
    run = load(arguments, model_values(arguments))
    draft = None if arguments.draft is None else _load_draft(arguments)
    tally = Tally() if arguments.speculative or draft is not None else None
    tell = cache(warn)  # once, however many texts there are
    if arguments.prompt == "-":
        request = replace(request, prompt=_standard_input())
    if arguments.interactive:
        continue_lines(
            arguments.prompt,
            lambda text, turn: write_pieces(
                run,
                replace(request, prompt=text, seed=request.seed + turn),
                draft=draft,
                tally=tally,
                tell=tell,
            ),
        )
    else:
        on_steps = [trace.add for trace in traces] if is_traced else None
        samples = write_samples(
            run, request, seeds, draft=draft, tally=tally, on_steps=on_steps, tell=tell
        )
        for seed, pieces in zip(seeds, samples, strict=True):
            _show(request, seed, pieces, arguments)
    if tally is not None:
        warn(tally.describe())
    if is_traced:
        title = f"{run.config.model}: {arguments.run}"
        write_text(arguments.trace, trace_page(title, traces, run.vocabulary))


def _show(
    request: TextRequest, seed: int, pieces: Iterator[str], arguments: argparse.Namespace
) -> None:
    """One sample, piece by piece, or as a line of JSON when it is whole."""
    if arguments.json:
        text = "".join(pieces) + request.suffix
        out(json.dumps({"prompt": request.prompt, "text": text, "seed": seed}))
        return
    if seed > arguments.seed:
        out("-" * 80)
    write(request.prompt)
    for piece in pieces:
        write(piece)
    out(request.suffix)


def _load_draft(arguments: argparse.Namespace) -> LoadedRun:
    from nanozoo_core.training import runs

    return runs.load_run(arguments.draft, device=arguments.device, verify=not arguments.no_verify)


def _request(arguments: argparse.Namespace) -> TextRequest:
    return TextRequest(
        prompt=arguments.prompt,
        suffix=arguments.suffix,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        num_steps=arguments.num_steps,
        use_cache=not arguments.no_cache,
        speculative=arguments.speculative,
        num_drafts=arguments.num_drafts,
        dtype=arguments.dtype,
    )


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raises: ConfigError for flags that --interactive leaves without effect."""
    others = {
        "--prompt -": arguments.prompt == "-",
        "--suffix": bool(arguments.suffix),
        "--json": arguments.json,
        "--trace": arguments.trace is not None,
        "--num-samples": arguments.num_samples != 1,
    }
    given = [flag for flag, is_given in others.items() if is_given]
    if arguments.interactive and given:
        raise ConfigError(f"--interactive does not go with {' and '.join(given)}; leave out one")


def _standard_input() -> str:
    """Raises: ConfigError when it is no text."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt -: standard input is no UTF-8 ({error.reason})") from error
    return text.removesuffix("\n").removesuffix("\r")
