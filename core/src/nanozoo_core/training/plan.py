"""What a run will do, computed before its first step: batches, budget and FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanozoo_core.config import TrainConfig, TrainingConfig
from nanozoo_core.contract import DataStage
from nanozoo_core.data.loader import BatchStage
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError, all_divisors
from nanozoo_core.training.budget import Budget, plan_budget


@dataclass(frozen=True)
class RunPlan:
    """The batches of a run, what a token costs in each of their stages, and when it ends."""

    stages: tuple[BatchStage, ...]
    flops_per_token: tuple[float, ...]  # one for each stage
    world_size: int
    budget: Budget
    step_tokens: float  # scored tokens of a step, the mean over the run
    step_flops: float

    def micro_windows(self, stage: BatchStage) -> int:
        """Windows that one process reads at once."""
        return stage.batch_windows // (self.world_size * stage.num_micro_steps)

    @property
    def tokens(self) -> float:
        """Of the whole run; 0 where only seconds limit it."""
        return (self.budget.steps or 0) * self.step_tokens

    @property
    def flops(self) -> float:
        """Of the whole run; 0 where only seconds limit it."""
        return (self.budget.steps or 0) * self.step_flops

    def describe(self) -> list[str]:
        """The batch and the budget. How long that takes is not guessed: the share of a device's
        peak differs between models by more than a factor of ten."""
        stages = f", {len(self.stages)} stages" if len(self.stages) > 1 else ""
        lines = [f"batch: {describe_batch(self.stages[0])}{stages}"]
        if self.budget.steps is None:
            return [*lines, "budget: train.max_seconds alone"]
        return [
            *lines,
            f"budget: {self.budget.steps:,} steps, {self.tokens:,.0f} tokens, "
            f"{self.flops:.2e} FLOPs",
            "time: those FLOPs / (the device's peak x mfu); train.max_steps=20 measures mfu, in "
            "result.json",
        ]


def plan_run(
    config: TrainingConfig,
    adapter: DefaultModelAdapter,
    model_cfg: Any,
    *,
    bytes_per_token: float,
    world_size: int = 1,
) -> RunPlan:
    """The plan of a run on `world_size` processes.

    Args: bytes_per_token: of the training text, on average; what a budget in bytes is counted by.

    Raises: ConfigError when a batch does not fit the window or the processes, or a budget in
        seconds leaves open when a model's batches change.
    """
    wanted = adapter.data_plan(model_cfg, config)
    sizes = [_size(stage, config.train, world_size) for stage in wanted.stages]
    pairs = list(zip(wanted.stages, sizes, strict=True))
    tokens = [float(windows * stage.seq_len) for stage, (windows, _) in pairs]
    flops_per_token = [adapter.flops_per_token(model_cfg, s.seq_len) for s in wanted.stages]
    step_tokens = _mean_over_run(wanted.stages, tokens)
    step_flops = _mean_over_run(
        wanted.stages, [t * f for t, f in zip(tokens, flops_per_token, strict=True)]
    )
    budget = plan_budget(
        config.train,
        step_tokens=step_tokens,
        step_bytes=step_tokens * bytes_per_token,
        step_flops=step_flops,
    )
    if len(sizes) > 1 and (budget.steps is None or budget.seconds is not None):
        raise ConfigError(
            f"{config.model} changes its batches with progress, which a budget of "
            f"train.max_seconds leaves undecided; use train.max_steps or train.max_tokens"
        )
    stages = tuple(
        BatchStage(
            start=max(1, round(stage.progress * (budget.steps or 0))) if number else 0,
            batch_windows=windows,
            seq_len=stage.seq_len,
            num_micro_steps=num_micro_steps,
        )
        for number, (stage, (windows, num_micro_steps)) in enumerate(pairs)
    )
    return RunPlan(
        stages,
        tuple(flops_per_token),
        world_size=world_size,
        budget=budget,
        step_tokens=step_tokens,
        step_flops=step_flops,
    )


def describe_batch(stage: BatchStage) -> str:
    return (
        f"{stage.batch_windows} windows of {stage.seq_len} tokens in "
        f"{stage.num_micro_steps} micro-steps"
    )


def usual_bytes_per_token(tokenizer: str) -> float:
    """Of text that is not there yet: that of a byte-pair vocabulary is roughly 4."""
    return 1.0 if tokenizer == "bytes" else 4.0


def describe_time(seconds: float) -> str:
    """In the unit that fits: 95 as 1.6 min."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"


def _size(stage: DataStage, train: TrainConfig, world_size: int) -> tuple[int, int]:
    """The windows of a stage's global batch, and the micro-steps that it takes in equal parts as
    large as `micro_batch_tokens` allows."""
    seq_len, batch_tokens = stage.seq_len, stage.batch_tokens
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
    return windows, per_rank // max(n for n in all_divisors(per_rank) if n <= most)


def _mean_over_run(stages: Sequence[DataStage], values: Sequence[float]) -> float:
    """The mean over the run of a per-step value given for each stage."""
    ends = [*(stage.progress for stage in stages[1:]), 1.0]
    spans = [end - stage.progress for stage, end in zip(stages, ends, strict=True)]
    return sum(span * value for span, value in zip(spans, values, strict=True))
