"""How much search is behind a recipe, as the first lines of its file say, and whether models that
are compared had as much of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.comparing.tune.request import parse
from nanozoo_core.errors import ConfigError

MARK = "# Found by `nanozoo tune`"
"""With which every recipe begins that a search has written."""
START = ["nanozoo", "tune"]


@dataclass(frozen=True)
class Effort:
    """Of one model's search."""

    trials: int
    budget: str
    """Of each trial."""
    space: str

    def __str__(self) -> str:
        return f"{self.trials} trials of {self.budget}, space={self.space}"

    def reaches(self, other: Effort) -> bool:
        """Whether it is as much: at least as many trials of the same kind."""
        same = (self.budget, self.space) == (other.budget, other.space)
        return same and self.trials >= other.trials


def effort_of(recipe: Path | None) -> Effort | None:
    """By the command in the first lines of a recipe; None where no search has written it."""
    if recipe is None:
        return None
    try:
        first, second, *_ = recipe.read_text(encoding="utf-8").splitlines()
        words = shlex.split(second.removeprefix("#"))
    except (OSError, ValueError):
        return None
    if not first.startswith(MARK) or words[:2] != START:
        return None
    try:
        request = parse(words[2:])
    except ConfigError:
        return None
    return Effort(request.trials, request.budget_name, request.space)


def unequal(recipes: Mapping[str, Path | None]) -> str | None:
    """A sentence where some of the models were tuned, and others less or not at all; None where all
    had the same.

    Args: recipes: of each model, by label; None is its committed one.
    """
    efforts = {label: effort_of(recipe) for label, recipe in recipes.items()}
    if len(set(efforts.values())) < 2:
        return None
    groups: dict[str, list[str]] = {}
    for label, effort in efforts.items():
        groups.setdefault("none" if effort is None else str(effort), []).append(label)
    parts = "; ".join(f"{', '.join(labels)}: {effort}" for effort, labels in groups.items())
    return (
        f"The models were not tuned with the same effort, so that a difference may be one of "
        f"tuning: {parts}."
    )


def undertuned(control: Path | None, models: Mapping[str, Path | None]) -> list[str]:
    """The labels of the models for which more was searched than for the control."""
    own = effort_of(control)
    found = []
    for label, recipe in models.items():
        effort = effort_of(recipe)
        if effort is not None and (own is None or not own.reaches(effort)):
            found.append(label)
    return found
