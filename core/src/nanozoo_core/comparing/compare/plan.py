"""From a request to members: one training each, composed and checked before anything runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.request import Request
from nanozoo_core.comparing.compare.width import match_widths
from nanozoo_core.comparing.entrants import Entrant, named
from nanozoo_core.config import TrainingConfig, schema
from nanozoo_core.config.overrides import as_written
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.files import read_json, write_json

# Settings that leave a run's result as it is: a run that differs in these alone is reused.
WITHOUT_EFFECT = ("seed", "resume", "run_dir", "log", "checkpoint", "distributed", "device")


@dataclass(frozen=True)
class Member:
    """One training: an entrant with one seed."""

    label: str
    model: str
    seed: int
    source: tuple[str, ...]
    """The flags of `train` that name the model or the recipe."""
    overrides: tuple[str, ...]
    """Of the settings, without run_dir."""
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
        return shlex.join(["train", *self.source, *self.overrides])


def make_plan(request: Request) -> tuple[list[Member], dict[str, str]]:
    """Every member of a comparison, seed by seed, so that an early stop leaves every model one run;
    and a sentence for each entrant that cannot take part.

    Raises: ConfigError for settings that any of the models refuses, each problem with the model it
        belongs to; CheckpointError when the folder holds a run of other settings.
    """
    entrants = request.entrants
    failures: dict[str, str] = {}
    if request.match is not None:
        entrants, failures = match_widths(request)
    composed: list[tuple[Entrant, TrainingConfig]] = []
    problems: list[str] = []
    for entrant in entrants:
        try:
            composed.append((entrant, request.resolve(entrant).training))
        except ConfigError as error:
            problems += named(entrant.label, error)
    if problems:
        raise ConfigError(problems)
    members = [
        _member(request, entrant, config, seed)
        for seed in request.seeds
        for entrant, config in composed
    ]
    for member in members:
        check_settings(member)
    return members, failures


def _member(request: Request, entrant: Entrant, config: TrainingConfig, seed: int) -> Member:
    settings = as_written(schema.to_dict(config))
    kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    return Member(
        label=entrant.label,
        model=config.model,
        seed=seed,
        source=tuple(entrant.source),
        overrides=(f"seed={seed}", *request.overrides_of(entrant)),
        settings=kept,
        folder=request.folder / "runs" / f"{entrant.label}_{seed}",
    )


def check_settings(member: Member) -> None:
    """Raises: CheckpointError when the member's folder was trained with other settings."""
    note = member.beside("json")
    if not member.folder.is_dir() or not note.is_file():
        return
    then = read_json(
        note,
        lambda stored: {str(key): value for key, value in stored["settings"].items()},
        remedy=f"choose another folder=, or remove it and {member.folder}",
    )
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
    rows = [asdict(member) | {"folder": str(member.folder)} for member in members]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, rows)
    return path


def read_member(path: Path, number: int) -> Member:
    def member(rows: list[dict[str, Any]]) -> Member:
        row = rows[number]
        texts = {key: tuple(row[key]) for key in ("source", "overrides")}
        return Member(**row | texts | {"folder": Path(row["folder"])})

    return read_json(path, member, remedy="give the command of the comparison again")
