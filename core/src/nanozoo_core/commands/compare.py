"""`nanozoo compare`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.comparing.compare.request import OPTIONS, OTHERS
from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.terminal import say


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
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.compare.command import compare_words

    found = compare_words(arguments.overrides, force=arguments.force)
    if found.report is not None:
        say(f"\n{found}")
    if found.failures:
        raise NanozooError("\n".join(f"{name}: {text}" for name, text in found.failures.items()))
