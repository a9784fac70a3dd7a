"""Probing models from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanozoo_core.config.overrides import as_words
from nanozoo_core.machine.terminal import warn

if TYPE_CHECKING:
    from nanozoo_core.probing.command import Probe


def probe(
    models: Sequence[str | os.PathLike[str]],
    *,
    tasks: Sequence[str] = ("parity",),
    seeds: int = 1,
    jobs: int = 1,
    long: bool = False,
    folder: str | os.PathLike[str] | None = None,
    force: bool = False,
    **settings: Any,
) -> Probe:
    """Trains models on small tasks whose answers are known, in processes of their own, and draws
    the matrix of models and tasks. The same call again goes on where it stopped.

    Args:
        models: models, recipe files, or variants "NAME:MODEL"; ["all"] are the installed ones.
        tasks: of what `nanozoo probe --help` lists; ["all"] are all of them.
        seeds: how many.
        jobs: how many trainings run at the same time, and share the CPU's threads.
        long: half an hour for each model and task, and larger tasks.
        folder: where the results are kept; None is runs/probe, or runs/probe_long.
        force: write into a folder that holds other files, over those of the same names.
        settings: other options of the command, such as rates=[1e-3, 3e-3], settings of every model,
            and sizes of tasks under their names, as parity={"longest": 16}.

    Trainings that failed, and models that read the future, are listed in what is returned.

    Raises: ConfigError, CheckpointError before anything runs; KeyboardInterrupt on Ctrl-C.
    """
    options = {"models": list(models), "tasks": list(tasks), "seeds": seeds, "jobs": jobs}
    if folder is not None:
        options["folder"] = os.fspath(folder)
    from nanozoo_core.comparing.compare.execute import Interrupted
    from nanozoo_core.probing import command

    try:
        return command.probe(as_words({**options, **settings}), is_long=long, force=force)
    except Interrupted as error:
        warn(str(error))
        raise KeyboardInterrupt from error
