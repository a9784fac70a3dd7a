"""`nanozoo tune`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.comparing.tune.request import OPTIONS, OTHERS
from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.terminal import say


def add_to(commands: Commands) -> None:
    parser = add_settings_command(
        commands,
        "tune",
        OPTIONS,
        OTHERS,
        help="search the settings of several models with the same effort for each",
        description="Searches learning rates, batch size, decay and what each model declares as "
        "its own (tune: in its YAML), trains the best again with fresh seeds, and writes a recipe "
        "of each model, report.html, report.md and plots. The same command, given again, goes on "
        "where it stopped. It needs nanozoo-core[tune].",
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.tune.command import tune

    found = tune(arguments.overrides, force=arguments.force)
    say(f"\n{found}")
    if found.failures:
        raise NanozooError("\n".join(f"{name}: {why}" for name, why in found.failures.items()))
