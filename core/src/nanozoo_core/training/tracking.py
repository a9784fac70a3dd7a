"""A run on Weights & Biases, which goes on under its id when the run is resumed."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from nanozoo_core.config import LogConfig
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import read_json, write_json
from nanozoo_core.training.run_folder import RunFolder

DEFAULT_PROJECT = "nanozoo"


def import_wandb() -> ModuleType:
    """Raises: ConfigError when the package is missing."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "log.wandb=true needs the package wandb; install nanozoo-core[wandb] or set "
            "log.wandb=false"
        ) from error
    module: ModuleType = wandb
    return module


def start_wandb(folder: RunFolder, log: LogConfig, config: dict[str, Any]) -> Any:
    """Begins the run there, or goes on with the one that the folder names, wherever it lies.

    A new one goes to the project log.wandb_project, or else $WANDB_PROJECT, or else nanozoo, of
    the entity and in the group of the settings, or else of the environment. What wandb writes, with
    WANDB_MODE=offline all that there is, lies in the run's folder.

    Raises: ConfigError for another entity than that of the run.
    """
    wandb = import_wandb()
    if folder.wandb_path.is_file():
        known = read_json(
            folder.wandb_path,
            lambda stored: {key: stored[key] for key in ("project", "entity", "id")},
            remedy="remove it to begin another run there",
        )
        known["entity"] = known["entity"] or log.wandb_entity  # it has none until it is synced
        if log.wandb_entity not in (None, known["entity"]):
            raise ConfigError(
                f"log.wandb_entity={log.wandb_entity} is not {known['entity']}, where the run lies "
                f"by {folder.wandb_path}; leave it out, or remove that file to begin another there"
            )
    else:
        project = log.wandb_project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
        known = {"project": project, "entity": log.wandb_entity}
    run = wandb.init(
        **known,
        group=log.wandb_group,
        resume="allow",
        name="/".join(folder.path.parts[-2:]),
        dir=str(folder.path),
        config=config,
    )
    stored = {"project": run.project, "entity": run.entity, "id": run.id}
    write_json(folder.wandb_path, stored)
    return run


class WeightsAndBiases:
    """The run there, as a service that takes rows."""

    def __init__(self, folder: RunFolder, log: LogConfig, config: dict[str, Any]) -> None:
        self._run = start_wandb(folder, log, config)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()
