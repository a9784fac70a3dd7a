"""What the user asked `nanozoo bench` for, read from its key=value arguments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanozoo_core.comparing.entrants import Entrant, named, read_entrants
from nanozoo_core.comparing.options import SETTING, Option, Words, usage
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.errors import CheckpointError, ConfigError, Problems, suggest
from nanozoo_core.training.run_folder import RunFolder

TASKS = ("train", "decode")
OPTIONS = (
    Option("models", "A,B", "models, recipe files, run folders, or variants NAME:MODEL"),
    Option("what", "LIST", "tasks: train,decode (both), or one of them"),
    Option("seconds", "N", "seconds of work per model and task (10), in whole steps and texts"),
    Option("rounds", "N", "blocks into which that work is divided (5)"),
    Option("decode_tokens", "N", "length of a text (128)"),
    Option("peak_flops", "N", "FLOPs per second of the device, for MFU where it is not known"),
    Option("folder", "PATH", "where bench.json and the traces are written (runs/bench/TIME)"),
)
OTHERS = (SETTING,)
RESERVED = {
    "model": "the models are those of models=",
    "resume": "a benchmark starts from fresh weights, or from a run folder in models=",
    "init_from": "a benchmark starts from fresh weights, or from a run folder in models=",
    "run_dir": "bench.json lies in folder=",
}


@dataclass(frozen=True)
class Assignment:
    """One model and one task: what a worker has to do."""

    label: str
    task: str
    model: str
    arguments: tuple[str, ...]
    """Overrides that compose its settings, on top of `recipe` where there is one."""
    recipe: Path | None = None
    run: Path | None = None
    """A finished run, whose weights it takes."""
    decode_tokens: int = 128


@dataclass(frozen=True)
class Request:
    """The parsed command."""

    assignments: tuple[Assignment, ...]
    tasks: tuple[str, ...]
    seconds: float
    rounds: int
    folder: Path
    peak_flops: float | None = None
    words: tuple[str, ...] = field(default=(), compare=False)

    def of(self, task: str) -> list[Assignment]:
        return [one for one in self.assignments if one.task == task]


def parse(words: Sequence[str]) -> Request:
    """Reads the arguments of `nanozoo bench` and composes every model's settings.

    Raises: ConfigError with a sentence for everything that makes no sense; CheckpointError for a
        folder in models= that is no run.
    """
    problems = Problems()
    given = Words.read("bench", OPTIONS, words, problems)
    names = given.parts("models")
    line = usage("bench", OPTIONS)
    problems.require(bool(names), f"nothing to measure: give models=A,B; usage: {line}")
    entrants, general = read_entrants(given, RESERVED)
    tasks = given.parts("what", TASKS)
    for task in tasks:
        near = suggest(task, TASKS)
        problems.require(task in TASKS, f"what={task} must be of {', '.join(TASKS)}{near}")
    problems.require(bool(tasks), f"what= must name one of {', '.join(TASKS)}")
    seconds = given.positive("seconds", 10.0)
    rounds = given.whole_number("rounds", 5)
    decode_tokens = given.whole_number("decode_tokens", 128)
    peak_flops = given.positive("peak_flops", None)
    problems.raise_if_any()
    assert seconds is not None
    found = [_assignment(entrant, general) for entrant in entrants]
    return Request(
        assignments=tuple(
            replace(one, task=task, decode_tokens=decode_tokens) for task in tasks for one in found
        ),
        tasks=tuple(dict.fromkeys(tasks)),
        seconds=seconds,
        rounds=rounds,
        folder=given.path("folder", f"runs/bench/{time.strftime('%Y-%m-%d_%H-%M-%S')}"),
        peak_flops=peak_flops,
        words=tuple(words),
    )


def _assignment(entrant: Entrant, general: Sequence[str]) -> Assignment:
    """The entrant's settings, composed once to see that they fit.

    Raises: ConfigError, each problem with the model it belongs to.
    """
    arguments = [*general, *entrant.overrides]
    recipe, run = entrant.recipe, None
    if recipe is None:
        target = str(entrant.model)
        if Path(target).is_dir():
            run = Path(target)
            recipe = RunFolder(run).config_path
            if not recipe.is_file():
                raise CheckpointError(f"models: {run} is not a run folder: it has no {recipe.name}")
        else:
            arguments = [f"model={target}", *arguments]
    try:
        config = resolve(compose_config(arguments, recipe=recipe))
    except ConfigError as error:
        raise ConfigError(named(entrant.label, error)) from error
    model = config.training.model
    return Assignment(entrant.label, "", model, tuple(arguments), recipe=recipe, run=run)
