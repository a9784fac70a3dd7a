"""Settings: their dataclasses, training.yaml, and the way from a command line to both.

Importing this package loads no torch.
"""

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
    "TrainConfig",
    "TrainingConfig",
]
