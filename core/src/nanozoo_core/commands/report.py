"""`nanozoo report`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.compare import tell
from nanozoo_core.commands.run_arguments import Commands, add_force
from nanozoo_core.machine.paths import path_argument


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="write a report of finished runs",
        description="Writes report.html, report.md, results.csv and plots of finished runs, "
        "whoever has trained them. Runs that differ in their seed alone are one entry.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder, NAME:FOLDER to call it otherwise, or a folder with runs in it",
    )
    parser.add_argument(
        "--folder",
        type=path_argument,
        default="runs/report",
        help="where the report is written (default: %(default)s)",
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.compare.command import report

    tell(report(arguments.runs, arguments.folder, force=arguments.force))
