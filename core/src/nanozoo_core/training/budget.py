"""When a run ends, and how far along it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanozoo_core.config import TrainConfig


@dataclass(frozen=True)
class Budget:
    """The first limit reached ends the run. All limits but seconds are known in steps beforehand,
    so that a run with none of seconds is the same on any machine."""

    steps: int | None
    seconds: float | None
    binding: str  # the key that sets `steps`

    def progress(self, step: int, seconds: float) -> float:
        """How far the run is after `step` steps and `seconds` of training, in [0, 1]."""
        parts = [0.0]
        if self.steps is not None:
            parts.append(step / self.steps)
        if self.seconds is not None:
            parts.append(seconds / self.seconds)
        return min(1.0, max(parts))

    def is_spent(self, step: int, seconds: float) -> bool:
        return self.progress(step, seconds) >= 1.0

    def describe(self) -> str:
        texts = []
        if self.steps is not None:
            texts.append(f"{self.steps} steps ({self.binding})")
        if self.seconds is not None:
            texts.append(f"{self.seconds:g} s (train.max_seconds)")
        return " or ".join(texts)


def plan_budget(
    train: TrainConfig, *, step_tokens: float, step_bytes: float, step_flops: float
) -> Budget:
    """Turns the limits of `train` into steps, rounded to whole steps down but at least one, by what
    a step costs on average: bytes at the corpus's mean bytes per token."""
    limits = {
        "train.max_steps": train.max_steps,
        "train.max_tokens": _over(train.max_tokens, step_tokens),
        "train.max_bytes": _over(train.max_bytes, step_bytes),
        "train.max_flops": _over(train.max_flops, step_flops),
    }
    known = {key: steps for key, steps in limits.items() if steps is not None}
    if not known:
        return Budget(None, train.max_seconds, "train.max_seconds")
    binding = min(known, key=lambda key: known[key])
    return Budget(known[binding], train.max_seconds, binding)


def _over(limit: float | None, per_step: float) -> int | None:
    return None if limit is None else max(1, math.floor(limit / per_step + 1e-9))
