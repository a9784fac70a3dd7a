"""`nanozoo show`: a model before it is trained, or a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanozoo_core.commands.run_arguments import Commands
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.paths import path_argument
from nanozoo_core.machine.terminal import out


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "show", help="describe a model (its settings, size and cost) or a finished run"
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="MODEL|RUN",
        help="an installed model, or the folder of a run",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the model")
    parser.add_argument(
        "--config", type=path_argument, help="describe a recipe instead of a model's defaults"
    )
    parser.add_argument(
        "--activations",
        action="store_true",
        help="for a model: also measure the memory that a micro-batch keeps, by computing a window",
    )
    parser.add_argument("--text", help="for a run: show what the model makes of this text")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.training import describe
    from nanozoo_core.training.run_folder import RunFolder

    target = arguments.target
    if target is None and arguments.config is None:
        raise ConfigError("nothing to show: give a model, a run folder or --config PATH")
    if target is not None and RunFolder(Path(target)).is_run:
        out(describe.describe_run(Path(target), text=arguments.text))
        return
    overrides = list(arguments.overrides)
    if target is not None:
        overrides.insert(0, target if "=" in target else f"model={target}")
    shown = describe.describe_model(
        overrides, recipe=arguments.config, activations=arguments.activations
    )
    out(shown)
