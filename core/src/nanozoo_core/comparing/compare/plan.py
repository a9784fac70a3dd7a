"""From a request to members: one training each, composed and checked before anything runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.request import UNITS, Entrant, Request
from nanozoo_core.config import TrainingConfig, compose_config, schema, training_config
from nanozoo_core.errors import CheckpointError, ConfigError

# Settings that leave a run's result as it is: a run that differs in these alone is reused.
WITHOUT_EFFECT = ("seed", "resume", "run_dir", "log", "checkpoint", "distributed", "device")


@dataclass(frozen=True)
class Member:
    """One training: an entrant with one seed."""

    label: str
    model: str
    seed: int
    arguments: tuple[str, ...]
    """For `train`, without run_dir."""
    settings: dict[str, Any]
    """All that decides the result."""
    folder: Path
    """Of the run; beside it lie FOLDER.json (the settings), .log, .lock and .error."""

    @property
    def name(self) -> str:
        return self.folder.name

    def beside(self, suffix: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{suffix}")

    @property
    def command(self) -> str:
        """The command that trains this member alone."""
        return shlex.join(["train", *self.arguments])


def make_plan(request: Request) -> tuple[list[Member], dict[str, str]]:
    """Every member of a comparison, seed by seed, so that an early stop leaves every model one run;
    and a sentence for each entrant that cannot take part.

    Raises: ConfigError for settings that any of the models refuses, each problem with the model it
        belongs to; CheckpointError when the folder holds a run of other settings.
    """
    entrants = request.entrants
    failures: dict[str, str] = {}
    if request.match is not None:
        from nanozoo_core.comparing.compare.width import match_widths

        entrants, failures = match_widths(request)
    composed: list[tuple[Entrant, list[str], TrainingConfig]] = []
    problems: list[str] = []
    for entrant in entrants:
        arguments = arguments_of(request, entrant)
        try:
            composed.append((entrant, arguments, compose_entrant(entrant, arguments)))
        except ConfigError as error:
            problems += [f"{entrant.label}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    members = [
        _member(request.folder, entrant, arguments, config, seed)
        for seed in request.seeds
        for entrant, arguments, config in composed
    ]
    for member in members:
        check_settings(member)
    return members, failures


def budget_overrides(request: Request) -> list[str]:
    """The one budget of all, in place of each model's own."""
    if request.budget is None:
        return []
    unit, amount = request.budget
    whole = int(amount) if unit in ("steps", "tokens", "bytes") else amount
    others = [f"train.max_{other}=null" for other in UNITS if other != unit]
    return [f"train.max_{unit}={whole}", *others]


def arguments_of(request: Request, entrant: Entrant) -> list[str]:
    """The overrides of an entrant, its own last."""
    return [*budget_overrides(request), *request.overrides, *entrant.overrides]


def compose_entrant(entrant: Entrant, arguments: list[str]) -> TrainingConfig:
    """The settings with which an entrant trains."""
    first = [] if entrant.recipe is not None else [f"model={entrant.model}"]
    return training_config(compose_config([*first, *arguments], recipe=entrant.recipe))


def _member(
    folder: Path, entrant: Entrant, arguments: list[str], config: TrainingConfig, seed: int
) -> Member:
    settings = schema.to_dict(config)
    kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    return Member(
        label=entrant.label,
        model=config.model,
        seed=seed,
        arguments=(*entrant.source, f"seed={seed}", *arguments),
        settings=kept,
        folder=folder / "runs" / f"{entrant.label}_{seed}",
    )


def check_settings(member: Member) -> None:
    """Raises: CheckpointError when the member's folder was trained with other settings."""
    note = member.beside("json")
    if not member.folder.is_dir() or not note.is_file():
        return
    then = json.loads(note.read_text())["settings"]
    key = first_difference(then, member.settings)
    if key is not None:
        name, old, new = key
        raise CheckpointError(
            f"{member.folder} was trained with {name}={old}, and now {name}={new} is asked for; "
            f"choose another folder= or remove that run"
        )


def first_difference(
    then: dict[str, Any], now: dict[str, Any], path: str = ""
) -> tuple[str, Any, Any] | None:
    """(dotted key, old value, new value) of the first setting that differs, or None."""
    for key in sorted({*then, *now}):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found = first_difference(old, new, f"{path}{key}.")
            if found is not None:
                return found
        elif json.dumps(old) != json.dumps(new):
            return f"{path}{key}", old, new
    return None


def write_plan(folder: Path, members: list[Member]) -> Path:
    """The plan as a file, from which each process reads its member."""
    path = folder / "plan.json"
    rows = [
        {
            "label": member.label,
            "model": member.model,
            "seed": member.seed,
            "arguments": list(member.arguments),
            "settings": member.settings,
            "folder": str(member.folder),
        }
        for member in members
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path


def read_member(path: Path, number: int) -> Member:
    row = json.loads(path.read_text())[number]
    return Member(
        **row | {"folder": Path(row["folder"]), "arguments": tuple(row["arguments"])},
    )
