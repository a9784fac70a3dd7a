"""A model learns one task: a small loop over the model's own adapter and core's optimisers.

It takes the steps of the trainer without what a run on text needs: shards, ranks, checkpoints,
metrics. All models have the same optimiser, whose rate and decay are what is tuned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nanozoo_core.config import OptimConfig
from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import NonFiniteError
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.probing.batches import LossOn, Source
from nanozoo_core.probing.coding import ProbeVocabulary
from nanozoo_core.training.parts import seed_dropout
from nanozoo_core.training.setup import STATISTICS_BATCHES

POINTS = 8  # of the curve


@dataclass(frozen=True)
class Plan:
    """How long one training is, and on what."""

    source: Source
    steps: int
    seconds: float
    """Where the steps take longer than that, the clock ends the training."""
    windows: int
    """In a batch."""
    loss: LossOn
    grad_clip: float

    @property
    def batch_tokens(self) -> int:
        return self.windows * self.source.length


@dataclass(frozen=True)
class Learned:
    """How far a training came."""

    steps: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    """(tokens read, accuracy on samples of their own)."""


@dataclass(frozen=True)
class Learner:
    """A model with its adapter, settings and place."""

    adapter: DefaultModelAdapter
    model_cfg: Any
    model: nn.Module
    device: torch.device

    @classmethod
    def fresh(
        cls, adapter: DefaultModelAdapter, model_cfg: Any, plan: Plan, device: torch.device
    ) -> Learner:
        """A model before its first step, its weights those of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.source.seed)
            model = adapter.build(model_cfg, ProbeVocabulary(plan.source.coding))
        model = model.to(device)
        learner = cls(adapter, model_cfg, model, device)
        adapter.prepare_model(model, learner.batches(plan, 0, STATISTICS_BATCHES))
        return learner

    def batches(self, plan: Plan, first: int, count: int) -> list[Batch]:
        """The training batches of some steps."""
        return [self.batch(plan, step) for step in range(first, first + count)]

    def batch(self, plan: Plan, step: int) -> Batch:
        lookahead = self.adapter.lookahead(self.model_cfg)
        found = plan.source.training_batch(step, plan.windows, lookahead, plan.loss)
        return found.to(self.device)


def train(
    learner: Learner,
    plan: Plan,
    optim: OptimConfig,
    *,
    accuracy: Callable[[], float],
    say: Callable[[str], object] = lambda text: None,
) -> Learned:
    """Trains a fresh model, and shows it the training once more where it calibrates itself.

    Args: accuracy: of the model as it stands, for the curve. say: is told each point of the curve.
    Raises: NonFiniteError when the loss or a gradient is not finite.
    """
    adapter, model = learner.adapter, learner.model
    groups = adapter.optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=plan.steps, device=learner.device)
    curve: list[tuple[int, float]] = []
    spent, number = 0.0, 0
    while number < plan.steps and spent < plan.seconds:
        started = time.perf_counter()
        progress = max(number / plan.steps, spent / plan.seconds)
        step = Step(number=number, progress=progress, seed=plan.source.seed)
        peak = adapter.lr_peak(learner.model_cfg, progress)
        optimizers.set_schedule(number, progress, peak=peak)
        model.train()
        seed_dropout(step)
        adapter.before_step(model, step)
        loss = adapter.training_loss(model, learner.batch(plan, number), step).value
        loss.backward()
        with torch.no_grad():
            adapter.before_update(model, step, optimizers.optimizers)
        norm = optimizers.clip(plan.grad_clip)
        _check_finite(number, float(loss.detach()), float(norm))
        optimizers.step()
        optimizers.zero_grad()
        with torch.no_grad():
            adapter.after_step(model, step, optimizers.optimizers)
        number += 1
        spent += time.perf_counter() - started
        share = max(number / plan.steps, spent / plan.seconds)
        is_last = share >= 1
        if is_last or share >= (len(curve) + 1) / POINTS:
            if is_last:
                _finish(learner, plan, number)
            model.eval()
            curve.append((number * plan.batch_tokens, accuracy()))
            say(f"step {number} of {plan.steps}: {curve[-1][1]:.3f}")
    return Learned(number, spent, tuple(curve))


def _finish(learner: Learner, plan: Plan, step: int) -> None:
    """As training ends: mod sets the thresholds by which it decodes."""
    learner.model.eval()
    batches = learner.batches(plan, step, STATISTICS_BATCHES)
    with torch.no_grad():
        learner.adapter.finalize(learner.model, batches)


def _check_finite(step: int, loss: float, norm: float) -> None:
    if not math.isfinite(loss + norm):
        raise NonFiniteError(
            f"the loss is {loss:g} and the norm of its gradient {norm:g} at step {step}; probe at "
            "lower rates="
        )
