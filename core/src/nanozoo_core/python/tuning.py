"""Searching settings from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from nanozoo_core.config.overrides import as_words
from nanozoo_core.machine.terminal import warn

if TYPE_CHECKING:
    from nanozoo_core.comparing.tune.command import Tuning


def tune(
    models: Sequence[str | os.PathLike[str]],
    *,
    trials: int = 24,
    budget: str = "bytes:1e6",
    space: Literal["core", "full"] = "core",
    prune: Literal["off", "median"] = "off",
    jobs: int = 1,
    batch: int | None = None,
    seed: int = 0,
    seeds: int = 2,
    storage: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    recipes: str | os.PathLike[str] = "configs/tuned",
    force: bool = False,
    **settings: Any,
) -> Tuning:
    """Searches the settings of several models with the same effort for each, and writes a recipe
    of each and a report. The same call again goes on where it stopped.

    Args:
        models: models, recipe files, or variants "NAME:MODEL".
        trials: trainings of each model's search.
        budget: of each training, "UNIT:N" with bytes, tokens, flops or steps.
        space: which of the shared keys are searched.
        prune: whether a hopeless training may end early.
        jobs: how many trainings run at the same time, and share the CPU's threads.
        batch: how many trials of a search are proposed at once; None is `jobs`.
        seed: of the searches and their trainings.
        seeds: with how many fresh seeds the choice is scored on the test split.
        storage: URL of the database of the searches; None is SQLite in the folder.
        folder: where the runs and the report are written; None is runs/tune/BUDGET.
        recipes: where the recipe files are written.
        force: write into a folder that holds other files, over those of the same names.
        settings: of every model, such as eval={"bytes": 50_000}; those of one stand under its name.

    Raises: ConfigError, CheckpointError before anything runs; NanozooError for a training that
        fails for another reason than its settings; KeyboardInterrupt on Ctrl-C, after the trainings
        have written checkpoints.
    """
    given = {"batch": batch, "storage": storage, "folder": folder}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    options |= {"models": list(models), "trials": trials, "budget": budget, "space": space}
    options |= {"prune": prune, "jobs": jobs, "seed": seed, "seeds": seeds, "recipes": recipes}
    words = as_words({**options, **settings})
    from nanozoo_core.comparing.compare.execute import Interrupted
    from nanozoo_core.comparing.tune import command

    try:
        return command.tune(words, force=force)
    except Interrupted as error:
        warn(str(error))
        raise KeyboardInterrupt from error
