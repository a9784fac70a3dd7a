"""What the user asked `nanozoo probe` for, read from its key=value arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from nanozoo_core import registry
from nanozoo_core.comparing.entrants import Entrant, named, read_entrants
from nanozoo_core.comparing.options import Words, usage
from nanozoo_core.config.overrides import parse_override
from nanozoo_core.errors import ConfigError, Problems, suggest
from nanozoo_core.probing.coding import CODINGS
from nanozoo_core.probing.member import Member
from nanozoo_core.probing.options import OPTIONS, RESERVED
from nanozoo_core.probing.task import Knob, Task
from nanozoo_core.probing.tasks import TASKS

LOSSES = ("answers", "all")
CONTROL = "vanilla"


@dataclass(frozen=True)
class Effort:
    """What a quick probe and a long one differ in."""

    tokens: float
    seconds: float
    folder: str


QUICK, LONG = Effort(0.8e6, 60.0, "runs/probe"), Effort(12e6, 900.0, "runs/probe_long")


@dataclass(frozen=True)
class Request:
    """The parsed command."""

    members: tuple[Member, ...]
    labels: tuple[str, ...]
    """Of the models, as they were asked for."""
    tasks: tuple[Task, ...]
    folder: Path
    jobs: int
    is_long: bool
    control: str | None = None
    """The label of the model that stands beside all others."""
    words: tuple[str, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> list[str]:
        """The labels from top to bottom: the control, then the others."""
        return sorted(self.labels, key=lambda label: label != self.control)

    @property
    def command(self) -> str:
        """The command to type for the same probe."""
        return shlex.join(["nanozoo", "probe", *self.words])


def parse(words: Sequence[str], *, is_long: bool = False) -> Request:
    """Reads the arguments of `nanozoo probe` and composes every training's settings.

    Raises: ConfigError with a sentence for everything that makes no sense.
    """
    problems = Problems()
    effort = LONG if is_long else QUICK
    knob_words = [word for word in words if word.partition(".")[0] in TASKS]
    rest = _with_all_models([word for word in words if word not in knob_words])
    given = Words.read("probe", OPTIONS, rest, problems)
    line = usage("probe", OPTIONS)
    problems.require(
        bool(given.parts("models")), f"nothing to probe: give models=A,B or models=all; {line}"
    )
    entrants, general = read_entrants(given, RESERVED)
    control = _control(given, entrants, problems)
    tasks = _tasks(given.parts("tasks", ["parity"]), knob_words, problems, is_long=is_long)
    coding, loss = given.one_of("coding", CODINGS), given.one_of("loss", LOSSES)
    folder = given.path("folder", effort.folder)
    tokens, seconds = (given.positive(key, getattr(effort, key)) for key in ("tokens", "seconds"))
    seeds, samples, jobs = (
        given.whole_number(key, default)
        for key, default in (("seeds", 1), ("samples", 1280), ("jobs", 1))
    )
    rates = _numbers(given, "rates", (1e-3, 3e-3), least=0.0, beyond=True)
    decays = _numbers(given, "decays", (0.1,), least=0.0, beyond=False)
    problems.raise_if_any()
    assert tokens
    assert seconds
    members = [
        Member(
            label=entrant.label,
            model=entrant.model,
            recipe=None if entrant.recipe is None else str(entrant.recipe),
            overrides=(*general, *entrant.overrides),
            task=task.name,
            knobs={knob.name: getattr(task, knob.name) for knob in fields(task)},  # type: ignore[arg-type]
            seed=seed,
            lr=rate,
            weight_decay=decay,
            coding=coding,
            loss="all" if loss == "all" else "answers",
            tokens=round(tokens),
            seconds=seconds,
            windows=task.batch_windows,
            samples=samples,
            file=str(
                folder / "cells" / task.name / f"{entrant.label}_{seed}_{rate:g}_{decay:g}.json"
            ),
        )
        for seed in range(seeds)
        for task in tasks
        for entrant in entrants
        for rate in rates
        for decay in decays
    ]
    _check(members)
    return Request(
        members=tuple(members),
        labels=tuple(entrant.label for entrant in entrants),
        tasks=tuple(tasks),
        folder=folder,
        jobs=jobs,
        is_long=is_long,
        control=control,
        words=(*words, *(["--long"] if is_long else [])),
    )


def _with_all_models(words: Sequence[str]) -> list[str]:
    everything = f"models={','.join(registry.model_modules())}"
    return [everything if word in ("models=all", "models=[all]") else word for word in words]


def _control(given: Words, entrants: list[Entrant], problems: Problems) -> str | None:
    """The label of the control, which becomes an entrant where it is none yet."""
    installed = registry.model_modules()
    name = given.text("control", CONTROL if CONTROL in installed else "none")
    if name == "none":
        return None
    labels = [entrant.label for entrant in entrants]
    if name in labels:
        return name
    if name not in installed:
        problems.add(
            f"control={name} must be none, one of models= or an installed model"
            f"{suggest(name, [*labels, *installed])}"
        )
        return None
    entrants.append(Entrant(name, model=name))
    return name


def _tasks(
    names: Sequence[str], words: Sequence[str], problems: Problems, *, is_long: bool
) -> list[Task]:
    """The tasks by name with their knobs; `all` is every one."""
    if list(names) == ["all"]:
        names = list(TASKS)
    knobs: dict[str, dict[str, Knob]] = {name: {} for name in names}
    for name in names:
        near = suggest(name, TASKS)
        problems.require(name in TASKS, f"tasks={name} must be of {', '.join(TASKS)}{near}")
    for word in words:
        _read_knob(word, knobs, problems)
    found = []
    for name in dict.fromkeys(names):
        if name in TASKS:
            kind = TASKS[name]
            task = kind(**(dict(kind.long_knobs) if is_long else {}) | knobs[name])
            for problem in task.check():
                problems.add(problem)
            found.append(task)
    problems.require(bool(found) or bool(names), "tasks= must name a task, or be all")
    return found


def _read_knob(word: str, knobs: dict[str, dict[str, Knob]], problems: Problems) -> None:
    """One word TASK.knob=N, or =NAME where the knob is one of the task's forms."""
    name, _, rest = word.partition(".")
    try:
        given = parse_override(rest)
    except ConfigError as error:
        problems.add(f"{name}: {error}")
        return
    known = {knob.name: knob.default for knob in fields(TASKS[name])}  # type: ignore[arg-type]
    value = given.value
    if name not in knobs:
        problems.add(f"'{word}' is a size of {name}, which tasks= does not name")
    elif given.key not in known:
        near = suggest(given.key, known)
        problems.add(f"'{word}': {name} has the knobs {', '.join(known)}{near}")
    elif isinstance(known[given.key], str):
        knobs[name][given.key] = given.text
    elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
        problems.add(f"{name}.{given.key}={given.text} must be a whole number")
    else:
        knobs[name][given.key] = value


def _numbers(
    given: Words, key: str, default: tuple[float, ...], *, least: float, beyond: bool
) -> tuple[float, ...]:
    """An option that is one number or several, each at least `least`, or above it, or a problem."""
    if key not in given.own:
        return default
    value = given.own[key].value
    found = value if isinstance(value, list) else [value]
    numbers = tuple(
        float(number)
        for number in found
        if isinstance(number, int | float)
        and not isinstance(number, bool)
        and (least < number < float("inf") or (number == least and not beyond))
    )
    if not numbers or len(set(numbers)) < len(found):
        kind = "positive numbers" if beyond else "numbers of at least 0"
        given.problems.add(f"{key}={given.text(key, '')} must be {kind}, none of them twice")
    return numbers


def _check(members: Sequence[Member]) -> None:
    """Composes the settings of each model on each task once.

    Raises: ConfigError, each problem with the model it belongs to.
    """
    problems: dict[str, None] = {}
    seen = set()
    for member in members:
        if (member.label, member.task) in seen:
            continue
        seen.add((member.label, member.task))
        try:
            member.resolved(member.source())
        except ConfigError as error:
            problems |= dict.fromkeys(named(f"{member.label}, {member.task}", error))
    if problems:
        raise ConfigError(list(problems))
