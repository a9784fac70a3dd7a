"""`nanozoo bench`."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands, add_force, add_settings_command
from nanozoo_core.comparing import options
from nanozoo_core.comparing.bench.request import OPTIONS, OTHERS
from nanozoo_core.comparing.peers.request import OPTIONS as PEER_OPTIONS


def add_to(commands: Commands) -> None:
    parser = add_settings_command(
        commands,
        "bench",
        OPTIONS,
        OTHERS,
        help="time training and decoding of several models side by side",
        description="Times models that take turns, each in a process of its own. Prints tables and "
        "writes bench.json: tokens/s and bytes/s as the median over the rounds with the least and "
        "the most, the ratio to the first model round by round, memory and MFU. With --peers it "
        "races models against other projects instead.",
    )
    parser.epilog = f"{parser.epilog}\n\nwith --peers:\n{options.describe(PEER_OPTIONS)}"
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also say where the time goes, and write a Chrome trace of each model",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="race training steps against clones of other projects in the folder $PEERS",
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.peers:
        from nanozoo_core.comparing.peers.command import race_peers

        race_peers(arguments.overrides, force=arguments.force)
        return
    from nanozoo_core.comparing.bench.command import bench

    bench(arguments.overrides, profile=arguments.profile, force=arguments.force)
