"""Which folder a run writes to, and how a run that was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nanozoo_core.config import TrainingConfig, schema
from nanozoo_core.errors import CheckpointError
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.build import OptimizerSet
from nanozoo_core.training import checkpoint
from nanozoo_core.training.budget import Budget
from nanozoo_core.training.ema import WeightAverage
from nanozoo_core.training.run_folder import RunFolder, TrainState, new_run_folder

KEPT_KEYS = ("model", "seed", "data", "model_cfg")


def choose_folder(config: TrainingConfig, ranks: Ranks) -> RunFolder:
    """The run to continue, or a new folder, the same on every rank."""
    if config.resume is not None:
        return RunFolder(Path(config.resume))
    folder = new_run_folder(config.run_dir, config.model) if ranks.is_main else None
    found: RunFolder = ranks.broadcast(folder)
    return found


def config_to_store(config: TrainingConfig, model_cfg: Any) -> dict[str, Any]:
    """The resolved settings, without those that belong to this start alone."""
    stored = schema.to_dict(config)
    stored["model_cfg"] = schema.to_dict(model_cfg)
    stored["resume"] = None
    stored["run_dir"] = None
    stored["train"]["stop_after"] = None
    return stored


def check_same_run(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Model, data and seed of a resumed run cannot change. Raises: CheckpointError."""
    stored = folder.read_config()
    for key in KEPT_KEYS:
        now, then = settings[key], stored.get(key)
        if now != then:
            inner = ""
            if isinstance(now, dict) and isinstance(then, dict):
                inner = next(f".{k}" for k in now if now[k] != then.get(k))
            raise CheckpointError(
                f"{key}{inner} differs from the run in {folder}; a resumed run keeps its "
                f"model, data and seed: start a new run instead"
            )


def check_unspent(budget: Budget, state: TrainState, folder: RunFolder) -> None:
    """Raises: CheckpointError when the run has nothing left to do."""
    if budget.is_spent(state.step, state.seconds):
        raise CheckpointError(
            f"{folder} has already reached its budget of {budget.describe()}; "
            f"raise the budget to train on"
        )


def gather_tensors(
    model: nn.Module, optimizers: OptimizerSet, average: WeightAverage
) -> dict[str, dict[str, Tensor]]:
    """All that a checkpoint holds beside the counters, by file stem; a collective."""
    tensors = {"model": checkpoint.model_tensors(model), "optimizer": optimizers.full_state()}
    return tensors | ({"ema": average.tensors()} if average.is_kept else {})


def restore(path: Path, model: nn.Module, optimizers: OptimizerSet, average: WeightAverage) -> None:
    """Takes over what `gather_tensors` gave. Raises: CheckpointError for another model's."""
    checkpoint.load_model_tensors(model, checkpoint.read_tensors(path, "model"), path)
    optimizers.load_full_state(checkpoint.read_tensors(path, "optimizer"))
    if average.is_kept:
        average.load(checkpoint.read_tensors(path, "ema"))
