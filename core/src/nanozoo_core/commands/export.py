"""`nanozoo export`: a run in another project's format."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import (
    Commands,
    add_force,
    add_run_arguments,
    load,
    model_values,
)
from nanozoo_core.machine.paths import path_argument
from nanozoo_core.machine.terminal import out


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write a run in another project's format")
    add_run_arguments(parser)
    parser.add_argument(
        "--to", choices=["hf"], default="hf", help="hf is a folder that transformers loads"
    )
    parser.add_argument("--output", type=path_argument, help="where the folder is written (RUN/hf)")
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.training.export import export_hf

    folder = arguments.output or arguments.run / "hf"
    export_hf(load(arguments, model_values(arguments)), folder, force=arguments.force)
    out(f"written to {folder}; transformers' AutoModelForCausalLM loads it")
