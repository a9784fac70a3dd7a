"""The learning rate and Muon's momentum as pure functions of where training stands."""

from __future__ import annotations

import math

from nanozoo_core.config import MuonConfig, OptimConfig

FIRST_WARM = 0.01  # of the top rate: where a warm-up of a hundred steps would begin


def lr_factor(
    progress: float,
    step: int,
    total_steps: int | None,
    optim: OptimConfig,
    *,
    peak: float = 1.0,
) -> float:
    """What every rate is multiplied by at a step.

    Args:
        progress: share of the budget spent before this step, 0 .. 1.
        step: optimiser steps taken before this one.
        total_steps: steps of the whole run; None where only progress is known, as with a budget
            in seconds. The warm-up is then estimated from the progress.
        peak: the level that is reached and left, where a model moves it with its batches; the
            rate at the very end does not depend on it.

    Returns: a factor in [0, peak].
    Reference: noam is equation 3 of arXiv 1706.03762, lr standing for (model_dim * warmup)^-0.5.
    """
    progress = min(max(progress, 0.0), 1.0)
    total = _total(progress, step, total_steps)
    if optim.warmup >= 1:
        warm, warmup = (step + 1) / optim.warmup, min(optim.warmup / total, 1.0)
    elif optim.warmup > 0:
        warm, warmup = (step + 1) / total / optim.warmup, optim.warmup
        if total_steps is None:  # at first nothing is known, and a rate of 0 would waste the step
            warm = max(warm, FIRST_WARM)
    else:
        warm, warmup = 1.0, 0.0
    if optim.schedule == "noam":
        return peak * min(warm, max(warm, 1.0) ** -0.5)

    left = 1.0  # of the decay: 1 before it, 0 at its end
    if optim.schedule == "wsd" and optim.decay_fraction > 0:
        left = min(max(1 - optim.hold_fraction - progress, 0.0) / optim.decay_fraction, 1.0)
    elif optim.schedule == "cosine" and warmup < 1:
        spent = max(progress - warmup, 0.0) / (1 - warmup)
        left = 0.5 * (1 + math.cos(math.pi * spent))
    return min(warm, 1.0) * (optim.final_lr_fraction + (peak - optim.final_lr_fraction) * left)


def muon_momentum(progress: float, step: int, total_steps: int | None, muon: MuonConfig) -> float:
    """Muon's momentum: up linearly from `momentum_min`, level, and down again over
    `cooldown_steps` at the end. Arguments as in `lr_factor`."""
    progress = min(max(progress, 0.0), 1.0)
    if muon.warmup_steps is None:  # a fifth of the run, at most 300 steps
        warm = max(progress / 0.2, step / 300)
    else:
        warm = step / muon.warmup_steps if muon.warmup_steps else 1.0
    level = min(warm, 1.0)
    if muon.cooldown_steps:
        remaining = _total(progress, step, total_steps) - step
        level = min(level, max(remaining / muon.cooldown_steps, 0.0))
    return muon.momentum_min + (muon.momentum - muon.momentum_min) * level


def _total(progress: float, step: int, total_steps: int | None) -> float:
    """Steps of the whole run, estimated from the progress where they are not known."""
    if total_steps is not None:
        return total_steps
    return step / progress if progress > 0 else math.inf
