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
from nanozoo_core.machine.terminal import out, warn

FORMS = {
    "hf": "transformers' AutoModelForCausalLM loads it",
    "safetensors": "train init_from={folder} begins with it",
    "gguf": "llama.cpp loads its model.gguf",
}


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write a run in another project's format")
    add_run_arguments(parser)
    parser.add_argument(
        "--to",
        choices=list(FORMS),
        default="hf",
        help="hf is a folder that transformers loads; safetensors is one of any model, with its "
        "settings; gguf is a file for llama.cpp",
    )
    parser.add_argument(
        "--output", type=path_argument, help="where the folder is written; RUN/FORMAT without it"
    )
    add_force(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.training.export import export_hf, export_safetensors
    from nanozoo_core.training.gguf_export import export_gguf

    folder = arguments.output or arguments.run / arguments.to
    writers = {"hf": export_hf, "safetensors": export_safetensors, "gguf": export_gguf}
    loaded = load(arguments, model_values(arguments))
    note = writers[arguments.to](loaded, folder, force=arguments.force)
    if note:
        warn(note)
    out(f"written to {folder}; {FORMS[arguments.to].format(folder=folder)}")
