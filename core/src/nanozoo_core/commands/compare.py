"""`nanozoo compare`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.comparing.compare.request import OPTIONS, OTHERS


def add_to(commands: Commands) -> None:
    parser = add_settings_command(
        commands,
        "compare",
        OPTIONS,
        OTHERS,
        help="train several models on equal terms and report on them",
        description="Trains models, each with several seeds and within one budget, and writes "
        "report.html, report.md, results.csv and plots. The same command, given again, goes on "
        "where it stopped.",
    )
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="RUN",
        help="take a finished run into the folder, without its weights; RUN or NAME:RUN",
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.compare.command import compare

    compare(arguments.overrides, add=arguments.add, force=arguments.force)
