"""How the global batch of each stage of a run is split over ranks and micro-steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanozoo_core.config import TrainConfig
from nanozoo_core.contract import DataPlan
from nanozoo_core.errors import ConfigError


@dataclass(frozen=True)
class BatchShape:
    """One stage's global batch: micro_windows x num_micro_steps x ranks windows of seq_len."""

    progress: float  # of the run, where the stage begins
    seq_len: int
    batch_windows: int
    micro_windows: int
    num_micro_steps: int

    @property
    def tokens(self) -> int:
        """Scored tokens of a step."""
        return self.batch_windows * self.seq_len


def plan_batches(plan: DataPlan, train: TrainConfig, world_size: int) -> list[BatchShape]:
    """The batch of every stage, in equal micro-batches as large as `micro_batch_tokens` allows.

    Raises: ConfigError when a batch holds no window or does not divide over the processes.
    """
    return [
        _shape(stage.progress, stage.batch_tokens, stage.seq_len, train, world_size)
        for stage in plan.stages
    ]


def _shape(
    progress: float, batch_tokens: int, seq_len: int, train: TrainConfig, world_size: int
) -> BatchShape:
    windows = batch_tokens // seq_len
    if windows < 1:
        raise ConfigError(
            f"train.batch_tokens={batch_tokens} is less than one window of data.seq_len={seq_len} "
            f"tokens"
        )
    if windows % world_size:
        raise ConfigError(
            f"train.batch_tokens={batch_tokens} makes {windows} windows of data.seq_len={seq_len}, "
            f"which do not divide over {world_size} processes; use a multiple of "
            f"{seq_len * world_size}"
        )
    per_rank = windows // world_size
    micro_tokens = train.micro_batch_tokens
    most = per_rank if micro_tokens is None else min(per_rank, micro_tokens // seq_len)
    if most < 1:
        raise ConfigError(
            f"train.micro_batch_tokens={micro_tokens} is less than one window of "
            f"data.seq_len={seq_len} tokens"
        )
    micro_windows = max(n for n in range(1, most + 1) if per_rank % n == 0)
    return BatchShape(progress, seq_len, windows, micro_windows, per_rank // micro_windows)


def mean_per_step(shapes: Sequence[BatchShape], values: Sequence[float]) -> float:
    """The mean over the run of a per-step value given for each stage."""
    ends = [*(shape.progress for shape in shapes[1:]), 1.0]
    spans = [end - shape.progress for shape, end in zip(shapes, ends, strict=True)]
    return sum(span * value for span, value in zip(spans, values, strict=True))
