"""Comparing models from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanozoo_core.config.overrides import as_words
from nanozoo_core.machine.terminal import warn

if TYPE_CHECKING:
    from nanozoo_core.comparing.compare.command import Comparison


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
