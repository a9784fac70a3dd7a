"""Training from Python: `train`, and what it has in common with the command of that name."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.config import compose, resolve
from nanozoo_core.config.foreign import refuse_hydra_settings
from nanozoo_core.config.overrides import as_words, quoted
from nanozoo_core.errors import CheckpointError, ConfigError, NanozooError
from nanozoo_core.machine.paths import checked_path
from nanozoo_core.machine.terminal import warn
from nanozoo_core.training.claim import newest_unfinished
from nanozoo_core.training.initial_weights import model_of, with_weights
from nanozoo_core.training.run_folder import RunFolder, parse_resume

if TYPE_CHECKING:
    from nanozoo_core.config import ResolvedConfig
    from nanozoo_core.training.records import OnRow
    from nanozoo_core.training.trainer import Result

_at_work = threading.Lock()


def train(
    model: str | None = None,
    *,
    recipe: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Result:
    """Trains a model, or goes on with a run, to its budget; the run's folder holds what came out.

    Args:
        model: an installed model, such as "gpt2".
        recipe: a YAML file in its place.
        resume: a run to continue: its folder, "FOLDER@STEP", or "auto" for the newest unfinished
            one of `model`.
        settings: as on the command line, by section: train={"max_steps": 20}, optim={"lr": 1e-3},
            model_cfg={"num_layers": 2}, run_dir="runs/mine", seed=1.

    Ctrl-C, and what else asks a process to end, take effect after the step, with a checkpoint
    written: Ctrl-C then raises KeyboardInterrupt here. Outside of the main thread no signal is
    looked at.

    Raises: NanozooError for whatever the user can mend, with the sentence that the command prints;
        KeyboardInterrupt.
    """
    config = composed(model, recipe=recipe, resume=resume, settings=settings)
    with _alone_in_this_process():
        result = train_resolved(config)
    received = result.signal
    # A handler of the user's has been called already, by `catch_signals`.
    if received == signal.SIGINT or (received and not callable(signal.getsignal(received))):
        signal.raise_signal(received)
    return result


def train_resolved(config: ResolvedConfig, *, on_row: OnRow | None = None) -> Result:
    """Trains by settings that are complete. What the command `train` and its sweeps call.

    Args: on_row: is told each row of metrics that is logged.
    """
    from nanozoo_core.training import trainer

    return trainer.train(config, on_row=on_row)


def composed(
    model: str | None,
    *,
    recipe: str | os.PathLike[str] | None,
    resume: str | os.PathLike[str] | None,
    settings: dict[str, Any],
) -> ResolvedConfig:
    """The settings of a run from arguments of `train`. Raises: ConfigError, CheckpointError."""
    source = None if recipe is None else Path(recipe)
    name = None
    if resume is not None:
        name = run_to_continue(os.fspath(resume), model=model, recipe=source)
    if name is not None:
        source = parse_resume(name)[0].config_path
        words = [*as_words(settings), f"resume={quoted(name)}"]
    else:
        if resume is not None:
            settings = {k: v for k, v in settings.items() if not k.startswith("resume_")}
        if model is None and source is None:
            model = model_of(settings.get("init_from"))
        words = [*([] if model is None else [f"model={model}"]), *as_words(settings)]
    if source is not None:
        with compose.recipe_source(source) as (folder, file, more):
            refuse_hydra_settings(source, folder, file, more)
    return resolve(with_weights(compose.compose_config(words, recipe=source), words))


def run_to_continue(resume: str, *, model: str | None, recipe: Path | None) -> str | None:
    """What `resume` names, as RUN or RUN@STEP; None, which is said, when auto finds nothing.

    Raises: ConfigError, CheckpointError for what cannot be continued so.
    """
    checked_path(resume, "resume")
    name: str | None = resume
    if resume == "auto":
        if model is None:
            raise ConfigError("resume=auto needs --model NAME to know which runs to look at")
        found = newest_unfinished(model)
        name = None if found is None else str(found)
    if name is None:
        warn("resume=auto finds no unfinished run; starting a new one")
        return None
    _check_continuable(parse_resume(name)[0], model=model, recipe=recipe)
    return name


def _check_continuable(run: RunFolder, *, model: str | None, recipe: Path | None) -> None:
    """Raises: CheckpointError for a folder that is no run, or one of another model; ConfigError for
    a recipe, which could not change the run's own settings."""
    stored = run.read_config()
    if recipe is not None:
        raise ConfigError(
            f"--config={recipe} has no effect with resume={run}, which has its settings from "
            f"the run; leave it out"
        )
    if model is not None and model != stored["model"]:
        raise CheckpointError(
            f"resume={run} is a run of model {stored['model']}, not {model}; "
            f"leave out --model or name the right run"
        )


@contextmanager
def _alone_in_this_process() -> Iterator[None]:
    """Trainings share the process's generator of random numbers, from which dropout draws: two at
    once would change each other. Afterwards it is as it was, for what else runs here.

    Raises: NanozooError while another one runs.
    """
    import torch

    if not _at_work.acquire(blocking=False):
        raise NanozooError(
            "another training runs in this process; wait for it, or start a process for each, as "
            "nanozoo_core.compare does with jobs=N"
        )
    is_cuda_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if is_cuda_used else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        _at_work.release()
