"""What the commands that take a run have in common: its arguments, and loading it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanozoo_core.comparing.options import Option, describe
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.paths import path_argument

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun

Commands = Any
"""What `ArgumentParser.add_subparsers` returns; argparse does not name its type."""


class CommandParser(argparse.ArgumentParser):
    """Whose help tells the defaults that say something."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _WithDefaults} | options)


class _WithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = (None, False, "", argparse.SUPPRESS)
        says_nothing = any(action.default is value for value in nothing)
        return action.help if says_nothing else super()._get_help_string(action)


def add_settings_command(
    commands: Commands, name: str, options: Sequence[Option], others: Sequence[Option], **texts: str
) -> argparse.ArgumentParser:
    """A command that is told everything as key=value, and whose help ends with a list of the keys.

    Args: texts: `help` and `description`.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        epilog=describe(options, others),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **texts,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of the command, and settings"
    )
    return parser


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into a folder that holds other files, over those of the same names",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_argument, help="the run's folder, such as runs/MODEL/TIME")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings to change; model_cfg.* among them where the weights allow it",
    )
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step number")
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="take files of the run that are not as it has written them",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda", "mps"],
        help="where the model runs; auto takes the best device that is present",
    )


def model_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of the model that the user changes.

    Raises: ConfigError for settings of anything but the model.
    """
    from nanozoo_core.config.overrides import split_model_values

    values, others = split_model_values(arguments.overrides)
    if others:
        raise ConfigError(f"'{others[0]}' does not apply here; only model_cfg.key=value does")
    return values


def split_moved_data(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Where the run's data lie now, from words `data.path=PLACE` and `data.text_key=KEY`, the same
    for `data.sources.NAME`, and the other words.

    Raises: ConfigError for another setting of the data.
    """
    from nanozoo_core.config.overrides import section_values

    mine = [word for word in words if word.lstrip("+").startswith("data.")]
    found = section_values(mine, section="data", subsections=["sources"])
    keys = {key: value for key, value in found.items() if key != "sources"}
    for name, source in found.get("sources", {}).items():
        keys |= {f"sources.{name}.{key}": value for key, value in source.items()}
    for key in keys:
        if key.rpartition(".")[2] in ("path", "text_key"):
            continue
        raise ConfigError(
            f"data.{key} is what the run has; only data.path and data.text_key can be given, where "
            "its data have moved"
        )
    return found, [word for word in words if word not in mine]


def load(
    arguments: argparse.Namespace, changes: dict[str, Any], moved: dict[str, Any] | None = None
) -> LoadedRun:
    """The run that the arguments name, with changed settings of its model.

    Args: moved: settings of the data that say where they lie now.
    """
    from nanozoo_core.training import runs

    run = runs.load_run(
        arguments.run,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        model_overrides=changes,
        verify=not arguments.no_verify,
    )
    return runs.with_moved_data(run, moved) if moved else run
