"""Comparing models from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanozoo_core.config.overrides import as_words
from nanozoo_core.machine.terminal import warn

if TYPE_CHECKING:
    from nanozoo_core.comparing.compare.command import Comparison
    from nanozoo_core.comparing.scale.command import Scaling


def compare(
    models: Sequence[str | os.PathLike[str]] = (),
    *,
    runs: Sequence[str | os.PathLike[str]] = (),
    add: Sequence[str | os.PathLike[str]] = (),
    budget: str = "bytes:2e6",
    seeds: int | Sequence[int] = 2,
    jobs: int = 1,
    folder: str | os.PathLike[str] | None = None,
    match: str | int | None = None,
    force: bool = False,
    **settings: Any,
) -> Comparison:
    """Trains several models on equal terms, each with several seeds and in processes of its own,
    and writes a report. The same call again goes on where it stopped.

    Args:
        models: models, recipe files, or variants "NAME:MODEL".
        runs: folders of finished runs that the report includes as well.
        add: such folders, or "NAME:FOLDER", that the comparison's folder takes in for later, too.
        budget: "UNIT:N" with bytes, tokens, flops, steps or seconds; "own" is each model's own.
        seeds: how many, or which.
        jobs: how many runs train at the same time, and share the CPU's threads.
        folder: where the runs and the report are written; None is runs/compare/BUDGET.
        match: scale widths until all have the parameters of this model, or this number of them.
        force: write into a folder that holds other files, over those of the same names.
        settings: of every model, such as eval={"bytes": 50_000}; those of one stand under its name,
            as wide={"model_cfg": {"model_dim": 256}}.

    Runs that failed are listed in what is returned, with the others.

    Raises: ConfigError, CheckpointError before anything runs; KeyboardInterrupt on Ctrl-C, after
        the trainings have written checkpoints.
    """
    given = {"models": list(models), "runs": list(runs), "match": match, "folder": folder}
    options = {key: value for key, value in given.items() if value not in (None, [])}
    words = as_words({**options, "budget": budget, "jobs": jobs, "seeds": seeds, **settings})
    from nanozoo_core.comparing.compare import command
    from nanozoo_core.comparing.compare.execute import Interrupted

    try:
        return command.compare(words, add=[os.fspath(run) for run in add], force=force)
    except Interrupted as error:
        warn(str(error))
        raise KeyboardInterrupt from error


def scale(
    models: Sequence[str | os.PathLike[str]],
    *,
    control: str = "vanilla",
    rungs: Sequence[float] = (0.1, 0.3, 1, 2),
    budgets: Sequence[float] = (1 / 8, 1 / 4, 1 / 2, 1),
    tokens: Sequence[float] = (),
    seeds: int | Sequence[int] = 2,
    jobs: int = 1,
    folder: str | os.PathLike[str] | None = None,
    recipes: str | os.PathLike[str] | None = None,
    plan: str = "full",
    match: str = "body",
    rates: str = "carried",
    untuned: str = "refuse",
    extrapolate: float | None = None,
    hours: float = 24,
    plan_only: bool = False,
    force: bool = False,
    **settings: Any,
) -> Scaling:
    """Trains models and a control at several sizes and budgets, and says how much compute each
    model saves. The same call again goes on where it stopped.

    Args:
        models: models, recipe files, or variants "NAME:MODEL".
        control: the model that all are measured against.
        rungs: sizes, in million weights of the body.
        budgets: shares of a rung's whole budget.
        tokens: the whole budget of each rung in tokens of the control; () is 20 a weight.
        seeds: how many, or which.
        jobs: how many runs train at the same time, and share the CPU's threads.
        folder: where the runs and the report are written; None is runs/scale.
        recipes: a folder of recipe files MODEL.yaml that take the place of the models' own.
        plan: "full", or "small": the top rung for the control and the best three models alone.
        match: "body" or "flops": what the models of a rung have in common.
        rates: "checked": try half and twice the learning rates at the ends of each ladder first.
        untuned: "allow": go on although a model is tuned and the control is not, or less.
        extrapolate: draw frontiers to so many times the largest compute, at most 3.
        hours: the longest that it may take by the plan.
        plan_only: return the plan with its cost, and train nothing.
        force: write into a folder that holds other files, over those of the same names.
        settings: of every model; those of one stand under its name, as in `compare`.

    Raises: ConfigError, CheckpointError before anything runs; KeyboardInterrupt on Ctrl-C, after
        the trainings have written checkpoints.
    """
    given: dict[str, Any] = {
        **{"models": list(models), "control": control, "rungs": list(rungs)},
        **{"budgets": list(budgets), "tokens": list(tokens), "seeds": seeds, "jobs": jobs},
        **{"folder": folder, "recipes": recipes, "plan": plan, "match": match, "rates": rates},
        **{"untuned": untuned, "extrapolate": extrapolate},
        **{"hours": hours, "plan_only": plan_only},
    }
    words = as_words({key: v for key, v in given.items() if v not in (None, [])} | settings)
    from nanozoo_core.comparing.compare.execute import Interrupted
    from nanozoo_core.comparing.scale import command

    try:
        return command.scale(words, force=force)
    except Interrupted as error:
        warn(str(error))
        raise KeyboardInterrupt from error
