"""`nanozoo compare`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.comparing.compare.request import OPTIONS, OTHERS
from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.terminal import say

if TYPE_CHECKING:
    from nanozoo_core.comparing.compare.command import Comparison


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

    tell(compare(arguments.overrides, add=arguments.add, force=arguments.force))


def tell(found: Comparison) -> None:
    """Prints the tables of a report. Raises: NanozooError with a sentence for each run that
    failed."""
    if found.report is not None:
        say(f"\n{found}")
    if found.failures:
        raise NanozooError("\n".join(f"{name}: {text}" for name, text in found.failures.items()))
