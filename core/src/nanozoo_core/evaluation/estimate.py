"""What a training will cost, told before it starts and without the machine it is meant for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import TrainingConfig
from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import PEAK_FLOPS
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.training.batches import BatchShape, mean_per_step, plan_batches
from nanozoo_core.training.budget import plan_budget

BYTES_PER_TOKEN = 4.0  # of a byte-pair vocabulary, roughly; a tokenizer of bytes has 1
REFERENCE_GPU = "H100"
ASSUMED_UTILISATION = 0.4


@dataclass(frozen=True)
class Plan:
    """The budget in full; `steps` is None where only seconds limit the run."""

    shapes: list[BatchShape]
    steps: int | None
    tokens: float
    flops: float

    def lines(self) -> list[str]:
        shape = self.shapes[0]
        stages = f", {len(self.shapes)} stages" if len(self.shapes) > 1 else ""
        text = (
            f"batch: {shape.batch_windows} windows of {shape.seq_len} tokens in "
            f"{shape.num_micro_steps} micro-steps{stages}"
        )
        if self.steps is None:
            return [text, "budget: train.max_seconds alone"]
        peak = PEAK_FLOPS[REFERENCE_GPU] * ASSUMED_UTILISATION
        alone, eight = (describe_time(self.flops / peak / number) for number in (1, 8))
        return [
            text,
            f"budget: {self.steps:,} steps, {self.tokens:,.0f} tokens, {self.flops:.2e} FLOPs",
            f"time: {alone} on one {REFERENCE_GPU}, {eight} on eight, at "
            f"{ASSUMED_UTILISATION:.0%} of their bfloat16 peak",
        ]


def plan(config: TrainingConfig, adapter: DefaultModelAdapter, model_cfg: Any) -> Plan:
    """Steps, tokens and FLOPs of a run, on one process. Where text limits it, a token of a
    byte-pair vocabulary is taken for four bytes.

    Raises: ConfigError when the batch does not fit the window.
    """
    shapes = plan_batches(adapter.data_plan(model_cfg, config), config.train, world_size=1)
    tokens = [float(shape.tokens) for shape in shapes]
    flops = [shape.tokens * adapter.flops_per_token(model_cfg, shape.seq_len) for shape in shapes]
    step_tokens, step_flops = mean_per_step(shapes, tokens), mean_per_step(shapes, flops)
    token_bytes = 1.0 if config.data.tokenizer == "bytes" else BYTES_PER_TOKEN
    budget = plan_budget(
        config.train,
        step_tokens=step_tokens,
        step_bytes=step_tokens * token_bytes,
        step_flops=step_flops,
    )
    steps = budget.steps
    return Plan(shapes, steps, (steps or 0) * step_tokens, (steps or 0) * step_flops)


def describe_time(seconds: float) -> str:
    """In the unit that fits: 95 as 1.6 min."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"


def activation_bytes(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    *,
    seq_len: int,
    lookahead: int,
    dtype: torch.dtype,
) -> int:
    """What the loss of one window keeps for its gradient, measured by computing it here.

    Args: model: with weights, on any device. dtype: of autocast.
    """
    generator = seeded_generator(0)
    size = getattr(getattr(model, "config", None), "vocab_size", None) or 256
    shape = (1, seq_len + lookahead)
    device = next(model.parameters()).device
    batch = Batch(
        tokens=torch.randint(min(size, 256), shape, generator=generator),
        documents=torch.zeros(shape, dtype=torch.int64),
        rows=torch.arange(1),
        num_rows=1,
        lookahead=lookahead,
    ).to(device)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        adapter.training_loss(model, batch, Step(number=0, progress=0.0, seed=0))
    return sum(kept.values())
