"""What the user asked `nanozoo bench` for, read from its key=value arguments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanozoo_core.comparing.compare.request import (
    Entrant,
    parse_entrants,
    split_list,
    split_words,
    whole_number,
)
from nanozoo_core.config import compose_config, training_config
from nanozoo_core.errors import CheckpointError, ConfigError, Problems, suggest
from nanozoo_core.training.run_folder import RunFolder

TASKS = ("train", "decode")
KEYS = ("models", "what", "seconds", "rounds", "decode_tokens", "peak_flops", "folder")
RESERVED = {
    "model": "the models are those of models=",
    "resume": "a benchmark starts from fresh weights, or from a run folder in models=",
    "run_dir": "bench.json lies in folder=",
}
USAGE = (
    "nanozoo bench models=gpt2,vanilla [what=train,decode] [seconds=10] [rounds=5] "
    "[decode_tokens=128] [peak_flops=FLOPS] [folder=PATH] [key=value ...] [MODEL.key=value ...] "
    "[--profile]"
)


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
    own, shared = split_words(words, KEYS, USAGE, problems)
    names = split_list(own.get("models", ""))
    problems.require(bool(names), f"nothing to measure: give models=A,B; usage: {USAGE}")
    entrants, general = parse_entrants(names, shared, problems, keys=KEYS, reserved=RESERVED)
    tasks = split_list(own.get("what", ",".join(TASKS)))
    for task in tasks:
        near = suggest(task, TASKS)
        problems.require(task in TASKS, f"what={task} must be of {', '.join(TASKS)}{near}")
    problems.require(bool(tasks), f"what= must name one of {', '.join(TASKS)}")
    seconds = _positive(own.get("seconds", "10"), "seconds", problems)
    rounds = whole_number(own.get("rounds", "5"), "rounds", problems)
    decode_tokens = whole_number(own.get("decode_tokens", "128"), "decode_tokens", problems)
    peak = own.get("peak_flops")
    peak_flops = None if peak is None else _positive(peak, "peak_flops", problems)
    problems.raise_if_any()
    found = [_assignment(entrant, general) for entrant in entrants]
    return Request(
        assignments=tuple(
            replace(one, task=task, decode_tokens=decode_tokens) for task in tasks for one in found
        ),
        tasks=tuple(dict.fromkeys(tasks)),
        seconds=seconds,
        rounds=rounds,
        folder=Path(own.get("folder", f"runs/bench/{time.strftime('%Y-%m-%d_%H-%M-%S')}")),
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
        config = training_config(compose_config(arguments, recipe=recipe))
    except ConfigError as error:
        raise ConfigError([f"{entrant.label}: {problem}" for problem in error.problems]) from error
    return Assignment(entrant.label, "", config.model, tuple(arguments), recipe=recipe, run=run)


def _positive(text: str, key: str, problems: Problems) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    problems.require(0 < value < float("inf"), f"{key}={text} must be a positive number")
    return value
