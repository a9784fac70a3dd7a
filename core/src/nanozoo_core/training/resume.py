"""How a run that was stopped goes on: from which checkpoint, and what must be as it was."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from nanozoo_core.config import ResolvedConfig, TrainingConfig, schema, training_config
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.optim.build import OptimizerSet
from nanozoo_core.training import checkpoint, integrity
from nanozoo_core.training.ema import WeightAverage
from nanozoo_core.training.plan import plan_run
from nanozoo_core.training.resumable_settings import RULES, START, check_settings
from nanozoo_core.training.run_data import lasting_path
from nanozoo_core.training.run_folder import RunFolder, TrainState, parse_resume, read_state
from nanozoo_core.training.setup import Setup
from nanozoo_core.training.stored_tensors import stored_tensors

log = logging.getLogger(__name__)


def config_to_store(config: TrainingConfig, model_cfg: Any) -> dict[str, Any]:
    """The resolved settings, without those that belong to this start alone."""
    stored = schema.to_dict(config)
    stored["data"]["path"] = lasting_path(config.data)
    for name, source in config.data.sources.items():
        stored["data"]["sources"][name]["path"] = lasting_path(source)
    stored["model_cfg"] = schema.to_dict(model_cfg)
    unset = {"resume": None, "resume_data": "same", "resume_files": "same", "run_dir": None}
    stored |= unset
    stored["train"]["stop_after"] = None
    assert {*unset, "train.stop_after"} == {key for key, rule in RULES.items() if rule == START}
    return stored


def begun_anew(resolved: ResolvedConfig) -> ResolvedConfig:
    """The settings of a run that begins in the folder of the one to go on with, where that one was
    killed before its first checkpoint; else those given."""
    config = resolved.training
    if config.resume is None:
        return resolved
    folder, step = parse_resume(config.resume)
    if step is not None or config.run_dir is not None or not folder.is_barely_begun:
        return resolved
    log.warning("%s has no checkpoint yet; the run begins anew", folder)
    anew = replace(
        config, resume=None, resume_data="same", resume_files="same", run_dir=str(folder)
    )
    return replace(resolved, training=anew)


def check_resumable(resolved: ResolvedConfig) -> None:
    """Judges a resumed run by its settings alone, before data are read.

    Raises: CheckpointError for a setting that cannot change; ConfigError for one without effect.
    """
    config = resolved.training
    assert config.resume is not None
    folder, _ = parse_resume(config.resume)
    check_settings(folder, config_to_store(config, resolved.model_cfg))
    state = integrity.newest_state(folder)
    if config.resume_files == "same" and state is not None:
        integrity.check_config(folder)
        integrity.check_run(folder, state)
    if config.run_dir is not None:
        raise ConfigError(
            f"run_dir={config.run_dir} has no effect with resume={config.resume}, which goes on "
            f"in its own folder; leave it out"
        )


def take_over(
    setup: Setup, folder: RunFolder, optimizers: OptimizerSet, average: WeightAverage
) -> TrainState:
    """Loads the checkpoint that `resume` asks for, or the newest whole one, and returns what the
    run had done there. Newer checkpoints are set aside: the run will write its own.

    Raises: CheckpointError when there is none, or the run cannot go on from it as asked.
    """
    config, ranks = setup.config, setup.ranks
    assert config.resume is not None
    stems = checkpoint.stems(is_averaged=average.is_kept)
    verify = config.resume_files == "same"
    step, problem = None, None
    if ranks.is_main:
        try:
            step = _choose_step(folder, parse_resume(config.resume)[1], stems, verify=verify)
        except CheckpointError as error:
            problem = str(error)
    step, problem = ranks.broadcast((step, problem))
    if step is None:
        raise CheckpointError(problem)
    path = folder.checkpoint(step)
    state = read_state(path, of=config.model, verify=verify)
    _check_budget(setup, state, folder)
    _check_position(setup, state, folder)
    tables = checkpoint.table_names(setup.model)
    # Each rank reads the blocks that it needs, whoever has written them.
    with ExitStack() as files:
        stored = {
            stem: files.enter_context(stored_tensors(path, stem, tables=tables)) for stem in stems
        }
        checkpoint.load_model_tensors(setup.model, stored["model"], path)
        optimizers.load_full_state(stored["optimizer"])
        if average.is_kept:
            checkpoint.check_average(setup.model, stored["ema"], path)
            average.load(stored["ema"])
    ranks.barrier()
    if ranks.is_main:
        for name in folder.set_aside_after(step):
            log.warning("%s is not the newest any more and is now called %s", *name)
    return _without_lost_best(folder, state)


def gather_tensors(
    model: nn.Module, optimizers: OptimizerSet, average: WeightAverage
) -> dict[str, dict[str, Tensor]]:
    """All that a checkpoint holds beside the counters, by file stem; a collective."""
    tensors = {"model": checkpoint.model_tensors(model), "optimizer": optimizers.full_state()}
    return tensors | ({"ema": average.tensors()} if average.is_kept else {})


def _choose_step(
    folder: RunFolder, asked: int | None, stems: tuple[str, ...], *, verify: bool
) -> int:
    steps = folder.checkpoint_steps()
    if asked is not None:
        if asked not in steps:
            names = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"resume={folder}@{asked} is not there; {folder} has checkpoints of these steps: "
                f"{names}"
            )
        checkpoint.check_whole(folder.checkpoint(asked), stems, verify=verify)
        return asked
    return checkpoint.newest_whole(folder, stems, verify=verify)


def _check_budget(setup: Setup, state: TrainState, folder: RunFolder) -> None:
    """Raises: CheckpointError when nothing is left to do (a run that is trained but has no result
    yet is still to be finished), or more is done than asked for."""
    budget, config = setup.plan.budget, setup.config
    if folder.is_finished and budget.is_spent(state.step, state.seconds):
        raise CheckpointError(
            f"{folder} has already reached its budget of {budget.describe()}; "
            f"raise the budget to train on"
        )
    stored = training_config(folder.read_config()).train
    limits = ("max_steps", "max_tokens", "max_bytes", "max_flops", "max_seconds")
    is_changed = any(getattr(stored, key) != getattr(config.train, key) for key in limits)
    is_passed = budget.steps is not None and state.step > budget.steps
    is_passed |= budget.seconds is not None and state.seconds > budget.seconds
    if is_changed and is_passed:
        raise CheckpointError(
            f"the run in {folder} is past the budget of {budget.describe()}: it has trained "
            f"{state.step} steps in {state.seconds:.0f} s; give a larger budget, or go back to an "
            f"earlier checkpoint with resume={folder}@STEP"
        )
    stop = config.train.stop_after
    if stop is not None and stop <= state.step:
        raise CheckpointError(
            f"train.stop_after={stop} is not after step {state.step}, from which the run in "
            f"{folder} goes on; use a later step"
        )


def _check_position(setup: Setup, state: TrainState, folder: RunFolder) -> None:
    """Raises: CheckpointError when the windows read so far are not those of the plan of now, as
    happens where a model changes its batches with progress and the budget has changed."""
    stored = training_config(folder.read_config())
    before = plan_run(
        stored, setup.adapter, setup.model_cfg, bytes_per_token=setup.data.bytes_per_token
    )
    then, now = (
        [replace(s, num_micro_steps=1) for s in plan.stages if s.start < state.step]
        for plan in (before, setup.plan)
    )
    if then != now:
        raise CheckpointError(
            f"{setup.config.model} changes its batches with progress, and with a budget of "
            f"{setup.plan.budget.describe()} the {state.step} steps of the run in {folder} would "
            f"have read other windows; keep its budget of {before.budget.describe()}"
        )


def _without_lost_best(folder: RunFolder, state: TrainState) -> TrainState:
    """The state, without a best score whose weights are gone: a later best took their place before
    the run went back."""
    if state.best_step is None or folder.checkpoint(state.best_step).is_dir():
        return state
    log.warning(
        "the best checkpoint, of step %d, is gone; the best is sought anew", state.best_step
    )
    return replace(state, best_bpb=None, best_step=None)
