"""What the user asked `nanozoo tune` for, read from its key=value arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.comparing.compare import request as comparison
from nanozoo_core.comparing.compare.request import Request, budget_name, read_budget
from nanozoo_core.comparing.entrants import read_entrants
from nanozoo_core.comparing.options import SETTING, Option, Words, usage
from nanozoo_core.comparing.tune.space import SPACES
from nanozoo_core.config.overrides import Override
from nanozoo_core.errors import Problems

PRUNING = ("off", "median")
OPTIONS = (
    Option("models", "A,B", "models, recipe files, or variants NAME:MODEL with NAME.key=value"),
    Option("control", "A", "one more, with which the others will be compared: it is tuned alike"),
    Option("trials", "N", "how many trainings each model's search has (24)"),
    Option("budget", "UNIT:N", "of every training: bytes (1e6), tokens, flops or steps"),
    Option("space", "core|full", "which of the shared keys are searched (core)"),
    Option("prune", "off|median", "whether a hopeless training may end early (off)"),
    Option("jobs", "N", "how many trainings run at the same time (1) and share the CPU's threads"),
    Option("batch", "N", "how many trials of a search are proposed at once (jobs)"),
    Option("seed", "N", "of the searches and of all their trainings (0)"),
    Option("seeds", "N", "with how many fresh seeds the choice is scored on the test split (2)"),
    Option("storage", "URL", "the database of the searches (SQLite in the folder)"),
    Option("folder", "PATH", "where runs and report are written (runs/tune/UNIT_N)"),
    Option("recipes", "PATH", "where the recipe files are written (configs/tuned)"),
)
OTHERS = (SETTING,)
RESERVED = comparison.RESERVED | {
    "seed": "all trainings of a search have the one seed=",
    "run_dir": "the runs lie under folder=",
    "init_from": "a search trains every model from its start",
    "resume": "a search resumes its own runs; give the same command again",
}
SPLIT = "a search scores its trials on the split tune, and its choice on test"


@dataclass(frozen=True)
class TuneRequest:
    """The parsed command. `base` has what it shares with a comparison: the entrants, the budget,
    the folder, and how many run at once."""

    base: Request
    trials: int
    space: str
    is_pruned: bool
    batch: int
    seed: int
    num_seeds: int
    storage: str | None
    recipes: Path

    @property
    def budget_name(self) -> str:
        return budget_name(self.base.budget)

    @property
    def fresh_seeds(self) -> tuple[int, int]:
        """Of the second look at the best trials."""
        return self.seed + 1, self.seed + 2

    @property
    def test_seeds(self) -> range:
        """Of the score that is reported: never one that took part in the choice."""
        return range(self.seed + 3, self.seed + 3 + self.num_seeds)


def parse(words: Sequence[str]) -> TuneRequest:
    """Reads the arguments of `nanozoo tune`.

    Raises: ConfigError with a sentence for every argument that makes no sense.
    """
    problems = Problems()
    given = Words.read("tune", OPTIONS, words, problems)
    problems.require(
        bool(given.parts("models")),
        f"nothing to tune: give models=A,B; usage: {usage('tune', OPTIONS)}",
    )
    control = given.text("control", "")
    if control and control not in given.parts("models"):
        names = [*given.parts("models"), control]
        given.own["models"] = Override("models", names, ",".join(names))
    for word in given.settings:
        key = word.partition("=")[0].lstrip("+")
        problems.require(not key.endswith("eval.split"), f"'{word}': {SPLIT}")
    entrants, general = read_entrants(given, RESERVED)
    budget = read_budget(given, default="bytes:1e6")
    problems.require(
        budget is not None and budget[0] != "seconds",
        f"budget={given.text('budget', '')} must be the same amount of work for every training of "
        "every search; give bytes, tokens, flops or steps",
    )
    jobs = given.whole_number("jobs", 1)
    base = Request(
        entrants=tuple(entrants),
        folder=given.path("folder", f"runs/tune/{budget_name(budget)}"),
        budget=budget,
        seeds=(),
        jobs=jobs,
        overrides=tuple(general),
        words=tuple(words),
        program="tune",
    )
    request = TuneRequest(
        base=base,
        trials=given.whole_number("trials", 24),
        space=given.one_of("space", SPACES),
        is_pruned=given.one_of("prune", PRUNING) == "median",
        batch=given.whole_number("batch", jobs),
        seed=_seed(given),
        num_seeds=given.whole_number("seeds", 2),
        storage=given.text("storage", "") or None,
        recipes=given.path("recipes", "configs/tuned"),
    )
    problems.require(
        request.trials >= 2,
        f"trials={request.trials} must be at least 2: the first is the committed recipe",
    )
    problems.raise_if_any()
    return request


def _seed(words: Words) -> int:
    given = words.own.get("seed")
    value = 0 if given is None else given.value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    words.problems.add(f"seed={words.text('seed', '')} must be a whole number of at least 0")
    return 0
