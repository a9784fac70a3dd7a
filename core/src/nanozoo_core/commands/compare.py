"""`nanozoo compare`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands
from nanozoo_core.comparing.compare.request import OPTIONS, OTHERS
from nanozoo_core.comparing.options import describe


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="train several models on equal terms and report on them",
        description="Trains models, each with several seeds and within one budget, and writes "
        "report.html, report.md, results.csv and plots. The same command, given again, goes on "
        "where it stopped.",
        epilog=describe(OPTIONS, OTHERS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of the command, and settings"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.compare.command import compare

    compare(arguments.overrides)
