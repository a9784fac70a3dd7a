"""`nanozoo prepare`: data before training."""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

from nanozoo_core.commands.run_arguments import Commands
from nanozoo_core.errors import ConfigError, suggest
from nanozoo_core.machine.paths import path_argument
from nanozoo_core.machine.terminal import out, warn

FINEWEB = ("fineweb10B", "fineweb100B")
KNOWN = ("stdlib", "packages", "huggingface", "bin", "mixture", *FINEWEB)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("prepare", help="download or tokenize a corpus before training")
    parser.add_argument(
        "corpus",
        type=lambda text: str(path_argument(text)),
        metavar="CORPUS|PATH",
        help=f"{', '.join(KNOWN)}, or a path to text",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings under data.")
    parser.add_argument(
        "--shards", type=int, help="how many training shards of a fineweb corpus to download"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.config import DataConfig, from_defaults
    from nanozoo_core.config.overrides import section_values
    from nanozoo_core.data.prepare import prepare

    name = arguments.corpus
    values: dict[str, object] = {"corpus": name}
    if name not in KNOWN:
        if not Path(name).exists() and not glob.has_magic(name):
            raise ConfigError(f"'{name}' is neither a corpus nor a path{suggest(name, KNOWN)}")
        values = {"corpus": "text", "path": name}
    elif name in FINEWEB:
        values["tokenizer"] = "gpt2"
    values |= section_values(arguments.overrides, section="data", subsections=["sources"])
    data = from_defaults(DataConfig, **values)
    if name in FINEWEB:
        from nanozoo_core.data.fineweb import download

        download(name, num_shards=arguments.shards)
    out(prepare(data, progress=warn).summary())
