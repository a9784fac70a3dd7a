"""`nanozoo models`: the installed models."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import Commands
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import to_json
from nanozoo_core.machine.terminal import out
from nanozoo_core.registry import model_summaries


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("models", help="list the installed models")
    parser.add_argument(
        "--json", action="store_true", help="as a list of objects with the keys name and summary"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    summaries = model_summaries()
    if arguments.json:
        rows = [{"name": name, "summary": summary} for name, summary in summaries.items()]
        out(to_json(rows, "the models", indent=2))
        return
    if not summaries:
        raise ConfigError("no model is installed; install one, for example nanozoo-gpt2")
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        out(f"{name:<{width}}  {summary}")
