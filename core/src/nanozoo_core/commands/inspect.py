"""`nanozoo inspect`: the diagnostics that a model has of its own."""

from __future__ import annotations

import argparse

from nanozoo_core.commands.run_arguments import (
    Commands,
    add_run_arguments,
    load,
    model_values,
    split_moved_data,
)
from nanozoo_core.machine.terminal import out


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="plot model-specific diagnostics of a run (expert loads, depth, routing)",
    )
    add_run_arguments(parser)
    parser.add_argument("--text", help="text to mark, where the model can (hnet shows its chunks)")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.evaluation import inspection
    from nanozoo_core.training import runs
    from nanozoo_core.training.run_folder import RunFolder

    moved, arguments.overrides = split_moved_data(arguments.overrides)
    loaded = load(arguments, model_values(arguments), moved)
    found, shown = runs.inspect_run(loaded, text=arguments.text)
    if found is None and shown is None:
        model = loaded.config.model
        out(f"{model} has no diagnostics; nanozoo show {arguments.run} tells its result")
    if found is not None:
        out(inspection.describe(found))
        folder = RunFolder(arguments.run)
        files = folder.inspection_path.name
        if found.pictures:
            files += f", {folder.inspection_picture_path.name}"
        out(f"written to {arguments.run}: {files}")
    if shown is not None:
        out(f"shown on a text:\n{shown}")
