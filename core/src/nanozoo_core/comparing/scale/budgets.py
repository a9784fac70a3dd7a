"""How long the runs of a rung train, and the schedule that lets the short ones be branches of the
longest.

All of them hold one rate after the warm-up and bring it down over their last fifth (Haegele et al.
2024, arXiv 2405.18392). So until its own decay each run is the longest one, step for step, where
nothing else depends on a run's length: warm-ups are whole steps and the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanozoo_core.config import ResolvedConfig
from nanozoo_core.config.resolved import BUDGETS

PARTS = 5  # of a run, the last of which is its decay
LONGEST_MOMENTUM_WARMUP = 300  # steps, as optim.muon.warmup_steps has it where it is null
FIXED = {
    **dict.fromkeys((f"train.max_{unit}" for unit in BUDGETS), "budgets= and tokens= set it"),
    "train.ema": "an average of weights hides the decay, which is a part of each budget",
    "optim.schedule": "every run holds its rate and then brings it down over its last fifth",
    "optim.decay_fraction": "every run brings its rate down over its last fifth",
    "optim.hold_fraction": "every run brings its rate down over its last fifth",
}
"""Settings that the ladder decides, and why."""


def steps_for(tokens: float, step_tokens: float) -> int:
    """Whole steps, of which the decay is a fifth exactly; at least five."""
    return PARTS * max(1, round(tokens / step_tokens / PARTS))


def branch_step(steps: int) -> int:
    """The step at which a run begins its decay, and leaves the longest one."""
    return steps - steps // PARTS


def bill(steps: Sequence[int], *, branched: bool) -> int:
    """The steps that are trained for all these runs together."""
    if not branched:
        return sum(steps)
    return branch_step(max(steps)) + sum(steps_of // PARTS for steps_of in steps)


def schedule(config: ResolvedConfig, steps: int, *, whole: int, shortest: int) -> list[str]:
    """The overrides of a run of so many steps.

    Args: whole: steps of the rung's whole budget, of which a warm-up may be a share. shortest: of
        its shortest run, of which no warm-up is more than a fifth.
    """
    optim, most = config.training.optim, shortest // PARTS
    warmup = optim.warmup if optim.warmup >= 1 else optim.warmup * whole
    momentum = optim.muon.warmup_steps
    if momentum is None:
        momentum = min(LONGEST_MOMENTUM_WARMUP, most)
    return [
        *(f"train.max_{unit}=null" for unit in BUDGETS if unit != "steps"),
        f"train.max_steps={steps}",
        "train.ema=0",
        "optim.schedule=wsd",
        f"optim.decay_fraction={1 / PARTS}",
        "optim.hold_fraction=0",
        f"optim.warmup={min(max(1, round(warmup)), most) if warmup > 0 else 0}",
        f"optim.muon.warmup_steps={min(momentum, most)}",
        f"optim.muon.cooldown_steps={min(optim.muon.cooldown_steps, most)}",
    ]
