"""The `nanozoo` command: a table of subcommands, each in a module of its own.

The modules import what they need when they are called: `nanozoo models` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nanozoo_core import __version__
from nanozoo_core.commands import (
    bench,
    compare,
    completion,
    evaluate,
    export,
    generate,
    inspect,
    models,
    new,
    prepare,
    probe,
    report,
    scale,
    show,
    tune,
)
from nanozoo_core.commands.run_arguments import CommandParser
from nanozoo_core.machine.terminal import reported_errors

COMMANDS = (
    *(models, show, prepare, evaluate, inspect, generate, compare, report, bench, export, new),
    *(tune, scale, probe, completion),
)
# Their work goes on when nobody reads what they say.
UNSTOPPED = ("prepare", "compare", "bench", "tune", "scale", "probe")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `nanozoo`."""
    completion.answer(build_parser)
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:  # settings may also stand behind flags
        if not hasattr(arguments, "overrides") or any(r.startswith("-") for r in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.overrides += rest
    with reported_errors(ends_with_reader=arguments.command not in UNSTOPPED):
        arguments.handler(arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nanozoo", description="Small language-model architectures under one trainer."
    )
    parser.add_argument("--version", action="version", version=f"nanozoo-core {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for command in COMMANDS:
        command.add_to(commands)
    for name, command_parser in commands.choices.items():
        command_parser.set_defaults(command=name)
    return parser


if __name__ == "__main__":
    main()
