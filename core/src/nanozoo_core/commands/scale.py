"""`nanozoo scale`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.comparing.scale.request import OPTIONS, OTHERS
from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.terminal import say


def add_to(commands: Commands) -> None:
    parser = add_settings_command(
        commands,
        "scale",
        OPTIONS,
        OTHERS,
        help="train models at several sizes and say how much compute each saves",
        description="Trains models and a control at several sizes and budgets, and writes "
        "report.html, report.md, scale.json and a picture: the compute multiplier of each model, "
        "with its interval at each size, and whether it rises with scale. The same command, given "
        "again, goes on where it stopped.",
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    """Raises: NanozooError with a sentence for each run that failed."""
    from nanozoo_core.comparing.scale.command import scale

    found = scale(arguments.overrides, force=arguments.force)
    say(f"\n{found}")
    if found.failures:
        raise NanozooError("\n".join(f"{name}: {text}" for name, text in found.failures.items()))
