"""What the user asked `nanozoo compare` for, read from its key=value arguments."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.entrants import Entrant, compose_values, labelled, read_entrants
from nanozoo_core.comparing.options import LARGEST_COUNT, SETTING, Option, Words, usage
from nanozoo_core.config import ResolvedConfig
from nanozoo_core.errors import Problems, suggest
from nanozoo_core.machine.paths import require_path

COUNTED = ("steps", "tokens", "bytes")  # of which there is no half
UNITS = (*COUNTED, "flops", "seconds")
OPTIONS = (
    Option("models", "A,B", "models, recipe files, or variants NAME:MODEL with NAME.key=value"),
    Option(
        "budget",
        "UNIT:N",
        "bytes (2e6), tokens, flops, steps or seconds of training; or own",
    ),
    Option("seeds", "N", "how many seeds (2), or a list of them, such as 3,4,5"),
    Option("jobs", "N", "how many runs train at the same time (1) and share the CPU's threads"),
    Option("folder", "PATH", "where the runs and the report are written (runs/compare/UNIT_N)"),
    Option("match", "A|N", "scale widths until all have the parameters of model A, or N of them"),
    Option(
        "rate_factors",
        "X,Y",
        "multiples of each model's own learning rates (0.5,1,2): the first seed tries all of them, "
        "and the best trains the other seeds",
    ),
    Option(
        "control",
        "A",
        "one of the models, which trains on other budgets as well: the report then says how much "
        "compute it needs for the score of each other (compute multiplier)",
    ),
    Option("control_budgets", "X,Y", "those budgets as multiples of budget= (0.25,0.5,2,4)"),
    Option("runs", "RUN,RUN", "finished runs, RUN or NAME:RUN, that the report includes as well"),
)
CONTROL_BUDGETS = (0.25, 0.5, 2.0, 4.0)
OTHERS = (
    SETTING,
    Option(
        "hydra/launcher", "X", "start the runs through a Hydra launcher, such as submitit_slurm"
    ),
)
RESERVED = {
    "model": "the models are those of models=",
    "seed": "the seeds are those of seeds=",
    "resume": "a comparison resumes its own runs; give the same command again",
    "init_from": "a comparison trains every model from its start",
    "run_dir": "the runs lie under folder=",
}


@dataclass(frozen=True)
class Request:
    """The parsed command; `budget` is (unit, amount), or None for each model's own."""

    entrants: tuple[Entrant, ...]
    folder: Path
    budget: tuple[str, float] | None
    seeds: tuple[int, ...]
    jobs: int
    match: str | None = None
    rate_factors: tuple[float, ...] = ()
    control: str | None = None
    control_budgets: tuple[float, ...] = ()
    runs: tuple[Path, ...] = ()
    labels: Mapping[Path, str] = field(default_factory=dict)
    """Of runs that are not called after their model."""
    overrides: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    words: tuple[str, ...] = field(default=(), compare=False)
    program: str = "compare"

    @property
    def command(self) -> str:
        """The command to type for the same comparison."""
        return shlex.join(["nanozoo", self.program, *self.words])

    def with_runs(self, found: Mapping[Path, str | None]) -> Request:
        """With more finished runs, each with its label where it has one."""
        labels = {run: label for run, label in found.items() if label is not None}
        runs = dict.fromkeys((*self.runs, *found))
        return replace(self, runs=tuple(runs), labels={**labels, **self.labels})

    def overrides_of(self, entrant: Entrant) -> list[str]:
        """All overrides of an entrant: the one budget in place of its own, those of all, its own
        last."""
        budget: list[str] = []
        if self.budget is not None:
            unit, amount = self.budget
            whole = int(amount) if unit in COUNTED else amount
            others = [f"train.max_{other}=null" for other in UNITS if other != unit]
            budget = [f"train.max_{unit}={whole}", *others]
        return [*budget, *self.overrides, *entrant.overrides]

    def resolve(self, entrant: Entrant) -> ResolvedConfig:
        """The settings with which an entrant trains. Raises: ConfigError."""
        overrides = self.overrides_of(entrant)
        return compose_values(overrides, model=entrant.model, recipe=entrant.recipe)


def parse(words: Sequence[str], *, needs_entrants: bool = True) -> Request:
    """Reads the arguments of `nanozoo compare`.

    Args: needs_entrants: whether it must name what to compare.
    Raises: ConfigError with a sentence for every argument that makes no sense.
    """
    problems = Problems()
    launcher = [word for word in words if word.lstrip("+").startswith("hydra")]
    rest = [word for word in words if word not in launcher]
    given = Words.read("compare", OPTIONS, rest, problems)
    problems.require(
        bool(given.parts("models") or given.parts("runs") or not needs_entrants),
        f"nothing to compare: give models=A,B or runs=RUN,RUN; usage: {usage('compare', OPTIONS)}",
    )
    entrants, general = read_entrants(given, RESERVED)
    runs = [labelled(text) for text in given.parts("runs")]
    for _, run in runs:
        require_path(problems, "runs", str(run))
    budget = read_budget(given)
    control, control_budgets = _read_control(given, budget, [one.label for one in entrants])
    request = Request(
        entrants=tuple(entrants),
        folder=given.path("folder", f"runs/compare/{budget_name(budget)}"),
        budget=budget,
        seeds=read_seeds(given),
        jobs=given.whole_number("jobs", 1),
        match=given.text("match", "") or None,
        rate_factors=given.distinct_positives("rate_factors"),
        control=control,
        control_budgets=control_budgets,
        runs=tuple(run for _, run in runs),
        labels={run: label for label, run in runs if label is not None},
        overrides=tuple(general),
        launcher=tuple(launcher),
        words=tuple(words),
    )
    problems.raise_if_any()
    return request


def _read_control(
    words: Words, budget: tuple[str, float] | None, labels: Sequence[str]
) -> tuple[str | None, tuple[float, ...]]:
    """`control=` and its other budgets, or a problem."""
    control = words.text("control", "") or None
    factors = words.distinct_positives("control_budgets") or CONTROL_BUDGETS
    require = words.problems.require
    if control is None:
        require("control_budgets" not in words.own, "control_budgets= wants control=MODEL")
        return None, ()
    require(
        control in labels,
        f"control={control} must be one of models={','.join(labels)}{suggest(control, labels)}",
    )
    require(budget is not None, "control= wants one budget for all, not budget=own")
    require(
        "rate_factors" not in words.own,
        "control= and rate_factors= do not go together: the control's rates would be chosen for "
        "one budget and used on others; choose them first (nanozoo tune) and name the recipes",
    )
    require(1.0 not in factors, "control_budgets: 1 is budget= itself, which is trained anyway")
    return control, factors


def read_budget(words: Words, default: str = "bytes:2e6") -> tuple[str, float] | None:
    """`budget=UNIT:N` as (unit, amount), None for each model's own, or a problem."""
    text = words.text("budget", default)
    if text == "own":
        return None
    unit, _, amount = text.partition(":")
    try:
        number = float(amount)
    except ValueError:
        number = 0.0
    if unit not in UNITS or not 0 < number < math.inf:
        words.problems.add(
            f"budget={text} must be UNIT:AMOUNT with UNIT one of {', '.join(UNITS)}, as in "
            f"budget=bytes:2e6, or own for each model's own budget{suggest(unit, UNITS)}"
        )
        return None
    return unit, number


def budget_name(budget: tuple[str, float] | None) -> str:
    """A budget as part of a path."""
    return "own" if budget is None else f"{budget[0]}_{budget[1]:g}".replace("+", "")


def read_seeds(words: Words) -> tuple[int, ...]:
    """`3` is three seeds from 0; `[4]` and `4,5` are those seeds."""
    given = words.own.get("seeds")
    value = 2 if given is None else given.value
    seeds: Sequence[Any] = ()
    if isinstance(value, list):
        seeds = value
    elif isinstance(value, int) and value <= LARGEST_COUNT:
        seeds = range(value)
    found = tuple(seed for seed in seeds if isinstance(seed, int) and seed >= 0)
    if not found or len(set(found)) < len(seeds):
        words.problems.add(
            f"seeds={words.text('seeds', '')} must be a number of seeds, or a list as in "
            "seeds=3,4,5"
        )
    return found
