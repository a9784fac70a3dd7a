"""`nanozoo probe`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.terminal import say
from nanozoo_core.probing.options import OPTIONS, OTHERS


def add_to(commands: Commands) -> None:
    parser = add_settings_command(
        commands,
        "probe",
        OPTIONS,
        OTHERS,
        help="ask what an architecture can do, on tasks whose answers are known",
        description="Trains models on small synthetic tasks, each at the same few rates, and asks "
        "them for the answers. Writes result.json, report.md and matrix.png. The same command, "
        "given again, trains only what is missing.",
    )
    parser.add_argument(
        "--long", action="store_true", help="half an hour for each model and task, and larger tasks"
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.probing.command import probe

    found = probe(arguments.overrides, is_long=arguments.long, force=arguments.force)
    say(f"\n{found}")
    if found.failures:
        raise NanozooError("\n".join(f"{name}: {text}" for name, text in found.failures.items()))
