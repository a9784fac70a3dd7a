"""Settings: their dataclasses, training.yaml, and the way from a command line to both.

Importing this package loads no torch.
"""

from nanozoo_core.config.compose import compose_config
from nanozoo_core.config.defaults import from_defaults
from nanozoo_core.config.resolved import ResolvedConfig, model_config, resolve, training_config
from nanozoo_core.config.settings import (
    AdamWConfig,
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    EvalConfig,
    LogConfig,
    MuonConfig,
    OptimConfig,
    TrainConfig,
    TrainingConfig,
)

__all__ = [
    "AdamWConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistributedConfig",
    "EvalConfig",
    "LogConfig",
    "MuonConfig",
    "OptimConfig",
    "ResolvedConfig",
    "TrainConfig",
    "TrainingConfig",
    "compose_config",
    "from_defaults",
    "model_config",
    "resolve",
    "training_config",
]
