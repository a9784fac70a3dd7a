"""From the files of the trainings to one cell for each model and task: the best rate of each seed,
and the mean over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanozoo_core.probing.execute import finished
from nanozoo_core.probing.member import Member
from nanozoo_core.probing.request import Request

PLATEAU_ERRORS = 3.0  # standard errors above the guess from which on a task counts as learned


@dataclass(frozen=True)
class Tried:
    """One rate and decay with one seed: what its samples for tuning said, and its test."""

    lr: float
    weight_decay: float
    tuning: float
    score: float


@dataclass(frozen=True)
class Cell:
    """One model on one task."""

    label: str
    task: str
    chosen: tuple[dict[str, Any], ...]
    """Of each seed what the best training wrote."""
    tried: tuple[Tried, ...]
    problem: str | None = None
    """Why there is no score, such as that it reads the future."""

    def mean(self, key: str) -> float:
        return statistics.fmean(found[key] for found in self.chosen)

    @property
    def score(self) -> float | None:
        """The headline, as a mean over seeds; None where there is none to compare."""
        return self.mean("score") if self.problem is None else None

    @property
    def normalised(self) -> float | None:
        """(score - guess) / (1 - guess): 0 is the trivial strategy, 1 is perfect."""
        guess = self.mean("guess") if self.chosen else 0.0
        if self.score is None or guess >= 1:
            return None
        return (self.score - guess) / (1 - guess)

    @property
    def is_learned(self) -> bool:
        """Whether it is above the guess, and above chance."""
        if self.score is None:
            return False
        bar = max(self.mean("guess"), self.mean("chance"))
        return self.score > bar + PLATEAU_ERRORS * self.mean("standard_error")


def collect(request: Request, failures: Mapping[str, str]) -> list[Cell]:
    """The cells of a request, by task and then by model, of what is finished.

    Raises: CheckpointError for a file of other settings.
    """
    cells = []
    for task in request.tasks:
        for label in request.labels:
            mine = [m for m in request.members if (m.label, m.task) == (label, task.name)]
            found = [(m, rows) for m in mine if (rows := finished(m)) is not None]
            missing = [failures[m.name] for m in mine if m.name in failures]
            cells.append(_cell(label, task.name, found, missing))
    return cells


def _cell(
    label: str,
    task: str,
    found: Sequence[tuple[Member, dict[str, Any]]],
    missing: Sequence[str],
) -> Cell:
    tried, chosen = [], []
    for seed in dict.fromkeys(member.seed for member, _ in found):
        rows = [row for member, row in found if member.seed == seed]
        chosen.append(max(rows, key=lambda row: row["tuning"]))
        for row in rows:
            rates = row["settings"]["lr"], row["weight_decay"]
            tried.append(Tried(*rates, tuning=row["tuning"], score=row["score"]))
    leaks = [row["leak"] for row in chosen if row["leak"] is not None]
    problem = None
    if leaks:
        problem = leaks[0]
    elif not chosen:
        problem = missing[0] if missing else "not trained"
    return Cell(label, task, tuple(chosen), tuple(tried), problem)
