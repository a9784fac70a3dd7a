"""From a request to members: one training each, composed and checked before anything runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.request import Request
from nanozoo_core.comparing.compare.width import match_widths
from nanozoo_core.comparing.entrants import Entrant, named
from nanozoo_core.config import ResolvedConfig, TrainingConfig, schema
from nanozoo_core.config.overrides import as_written
from nanozoo_core.errors import CheckpointError, ConfigError, NonFiniteError
from nanozoo_core.files import read_json, write_json
from nanozoo_core.training.precision_settings import undecided
from nanozoo_core.training.resume import config_to_store
from nanozoo_core.training.run_folder import RunFolder

# Settings that leave a run's result as it is: a run that differs in these alone is reused.
WITHOUT_EFFECT = (
    *("seed", "run_dir", "log", "checkpoint", "distributed", "device"),
    *("resume", "resume_data", "resume_files", "tune"),
)


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
    composed: list[tuple[Entrant, ResolvedConfig]] = []
    problems: list[str] = []
    for entrant in entrants:
        try:
            composed.append((entrant, request.resolve(entrant)))
        except ConfigError as error:
            problems += named(entrant.label, error)
    if problems:
        raise ConfigError(problems)
    members = []
    for seed in request.seeds:
        for entrant, config in composed:
            members.append(make_member(request, entrant, config.training, seed))
            check_folder(members[-1], config)
    check_runs(members, request.runs)
    return members, failures


def make_member(request: Request, entrant: Entrant, config: TrainingConfig, seed: int) -> Member:
    """The training of an entrant, composed to `config`, with a seed."""
    settings = as_written(schema.to_dict(config))
    return Member(
        label=entrant.label,
        model=config.model,
        seed=seed,
        source=tuple(entrant.source),
        overrides=(f"seed={seed}", *request.overrides_of(entrant)),
        settings=kept_settings(settings),
        folder=request.folder / "runs" / f"{entrant.label}_{seed}",
    )


def check_folder(member: Member, asked: ResolvedConfig) -> None:
    """Raises: CheckpointError when the member's folder holds what this comparison would not have
    put there: a run of other settings, or something else."""
    if not is_in_use(member):
        return
    if not member.beside("json").is_file() and not RunFolder(member.folder).is_run:
        raise CheckpointError(
            f"{member.folder} holds files that no comparison wrote; choose another folder= or "
            f"remove them"
        )
    for then, now in _settings_then_and_now(member, asked):
        key = first_difference(then, now)
        if key is not None:
            name, old, new = key
            raise CheckpointError(
                f"{member.folder} was trained with {name}={old}, and now {name}={new} is asked "
                f"for; choose another folder= or remove that run"
            )


def is_in_use(member: Member) -> bool:
    """Whether something lies at the member's place."""
    return member.folder.is_dir() and any(member.folder.iterdir())


def _settings_then_and_now(
    member: Member, asked: ResolvedConfig
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Those noted beside the folder, and those that its run has itself."""
    note = member.beside("json")
    if note.is_file():
        yield kept_settings(_noted_settings(note, member)), member.settings
    run = RunFolder(member.folder)
    if run.is_run:
        stored = run.read_config()
        size = stored["model_cfg"].get("vocab_size") or asked.vocab_size
        training = replace(asked.training, seed=member.seed)
        wanted = config_to_store(training, asked.with_vocabulary(size).model_cfg)
        then, now = (as_written(settings) for settings in (stored, wanted))
        # The type is float32 unless one was asked for.
        then = undecided(then, now, keys=("attention_form",))
        yield kept_settings(then, "seed"), kept_settings(now, "seed")


def kept_settings(settings: dict[str, Any], *also: str) -> dict[str, Any]:
    """The settings that decide a result, and `also`."""
    return {k: v for k, v in settings.items() if k not in WITHOUT_EFFECT or k in also}


def check_runs(members: Sequence[Member], folders: Sequence[Path]) -> None:
    """Raises: CheckpointError for a run of runs= that is not finished, or that is there already:
    the same run twice would pass for two seeds."""
    places = {member.folder.resolve(): str(member.folder) for member in members}
    known: dict[str, Path] = {}
    for folder in folders:
        try:
            RunFolder(folder).read_result()
        except NonFiniteError:  # the report lists it as failed
            continue
        place = folder.resolve()
        if place in places:
            raise CheckpointError(f"runs: {folder} takes part already, as {places[place]}")
        places[place] = str(folder)
        settings = json.dumps(kept_settings(as_written(RunFolder(folder).read_config()), "seed"))
        if settings in known:
            raise CheckpointError(
                f"runs: {folder} has the settings and the seed of {known[settings]}, so that both "
                f"say the same; give one of them"
            )
        known[settings] = folder


def _noted_settings(note: Path, member: Member) -> dict[str, Any]:
    return read_json(
        note,
        lambda stored: {str(key): value for key, value in stored["settings"].items()},
        remedy=f"choose another folder=, or remove it and {member.folder}",
    )


def first_difference(
    then: dict[str, Any], now: dict[str, Any], path: str = ""
) -> tuple[str, Any, Any] | None:
    """(dotted key, old value, new value) of the first setting that differs, or None."""
    for key in sorted({*then, *now}):
        old, new = then.get(key), now.get(key)
        if isinstance(new, dict) and old is None:  # a section that an older version did not know
            old = {}
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
