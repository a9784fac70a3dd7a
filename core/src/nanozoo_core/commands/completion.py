"""`nanozoo completion`: tab completion of `nanozoo` and `train`, and the words that it offers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from nanozoo_core import registry
from nanozoo_core.commands.run_arguments import Commands
from nanozoo_core.config import DataConfig, EvalConfig, TrainingConfig, schema
from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.terminal import out
from nanozoo_core.training.run_folder import RunFolder

PROGRAMS = ("nanozoo", "train")
ZSH_SYSTEM = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"

Completer = Callable[..., list[str]]


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete the words of nanozoo and train",
        description='bash and zsh: eval "$(nanozoo completion SHELL)"; '
        "fish: nanozoo completion fish | source",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell that you use")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from argcomplete.shell_integration import shellcode

    start = ZSH_SYSTEM if arguments.shell == "zsh" else ""
    out(start + shellcode(PROGRAMS, shell=arguments.shell))


def answer(make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Where a shell asks for words, offers those of the parser and ends the process."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    parser = make_parser()
    for command, inner in _commands(parser):
        for action in inner._actions:
            completer = _completer(command, action)
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def train_parser() -> argparse.ArgumentParser:
    """The words of `train`, which reads them by itself."""
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("--model", choices=list(registry.model_modules()))
    parser.add_argument("--config", "--hydra_model_cfg")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("overrides", nargs="*")
    return parser


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _completer(command: str, action: argparse.Action) -> Completer | None:
    """What completes an argument; None leaves it to its choices, or to the files."""
    if action.dest == "overrides":
        return lambda prefix, parsed_args, **_: setting_words(command, prefix, parsed_args)
    if (command, action.dest) == ("show", "target"):
        return lambda prefix, **_: [*registry.model_modules(), *_folders(prefix)]
    if (command, action.dest) == ("new", "name"):
        return lambda **_: []
    return None


def setting_words(command: str, prefix: str, arguments: argparse.Namespace) -> list[str]:
    """The words `key=` that a command takes, or `key=value` behind a key whose values are known."""
    key, equals, _ = prefix.partition("=")
    known = _settings_of(command, arguments)
    if not equals:
        return [f"{name}=" for name in known]
    if key == "models":
        done, comma, _ = prefix.rpartition(",")
        return [f"{done}{comma}{name}" if comma else f"{key}={name}"
                for name in registry.model_modules()]  # fmt: skip
    return [f"{key}={value}" for value in known.get(key, ())]


def _settings_of(command: str, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The keys that a command takes, each with its values where they are few."""
    if command == "prepare":
        return _values(DataConfig, "data.")
    if command in ("evaluate", "generate", "inspect", "export"):
        own = _values(EvalConfig, "eval.") if command == "evaluate" else {}
        return own | _model_values(_model_of_run(arguments.run))
    if command == "probe":
        return _options(command) | {"device": ["auto", "cpu", "cuda", "mps"]}
    if command in ("compare", "bench", "tune", "scale"):
        return _options(command) | _values(TrainingConfig)
    model = getattr(arguments, "model", None) or getattr(arguments, "target", None)
    known = _values(TrainingConfig) | _model_values(model)
    if command == "train":
        known["model"] = list(registry.model_modules())
    return known


def _options(command: str) -> dict[str, list[str]]:
    from nanozoo_core.comparing.bench import request as bench
    from nanozoo_core.comparing.compare import request as compare
    from nanozoo_core.comparing.scale import request as scale
    from nanozoo_core.comparing.tune import request as tune
    from nanozoo_core.probing import options as probe

    found = {
        "compare": compare.OPTIONS,
        "bench": bench.OPTIONS,
        "tune": tune.OPTIONS,
        "scale": scale.OPTIONS,
        "probe": probe.OPTIONS,
    }
    return {option.key: [] for option in found[command]}


def _model_values(model: str | None) -> dict[str, list[str]]:
    if model not in registry.model_modules():
        return {}
    return _values(registry.config_class(str(model)), "model_cfg.")


def _model_of_run(folder: Path | None) -> str | None:
    try:
        return None if folder is None else str(RunFolder(Path(folder)).read_config()["model"])
    except NanozooError:
        return None


def _values(cls: type, prefix: str = "") -> dict[str, list[str]]:
    hints = get_type_hints(cls, include_extras=True)
    found: dict[str, list[str]] = {}
    for field in fields(cls):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint):
            assert isinstance(hint, type)
            found |= _values(hint, f"{key}.")
        elif key not in ("model", "model_cfg"):
            found[key] = ["true", "false"] if hint is bool else schema.choices(hint)
    return found


def _folders(prefix: str) -> list[Any]:
    """Where runs may lie."""
    folder, _, _ = prefix.rpartition("/")
    start = Path(folder) if folder else Path()
    if not start.is_dir():
        return []
    return [f"{path}/" for path in start.iterdir() if path.is_dir() and path.name[0] != "."]
