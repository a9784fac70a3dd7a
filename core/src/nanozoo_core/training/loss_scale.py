"""What float16 asks of training: a loss large enough that no gradient falls below its range."""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.optim.build import OptimizerSet
from nanozoo_core.training.run_folder import TrainState

LEAST_SCALE = 1.0  # at it no gradient is held larger than it is
GROWTH_STEPS = 2000  # steps without an overflow after which a larger scale is tried


class LossScale:
    """Multiplies the loss by a power of two, and divides the gradients by it again.

    Gradients that overflow are no divergence: the step is taken again with half the scale, on the
    same batch, so that it is counted once, as any other. `torch.amp.GradScaler` would leave the
    step out, and each rank would look at its own shards alone; here all ranks decide by the norm of
    all gradients. In other precisions than float16 it does nothing.

    Reference: arXiv 1710.03740, section 3.2.
    """

    def __init__(self, dtype: torch.dtype, optimizers: OptimizerSet, state: TrainState) -> None:
        self.is_on = dtype == torch.float16
        self._optimizers, self._state = optimizers, state
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @property
    def factor(self) -> float:
        return self._state.loss_scale if self.is_on else 1.0

    @property
    def can_fall(self) -> bool:
        """Whether gradients that are not finite may be finite with a lower scale."""
        return self.is_on and self._state.loss_scale > LEAST_SCALE

    @property
    def remark(self) -> str:
        """What a sentence about a number that is not finite adds."""
        return " (float16 ends at 65504; dtype=float32 goes on)" if self.is_on else ""

    def begin(self) -> None:
        """Before the first backward pass of a step: what waits since earlier steps is unscaled, and
        is set aside."""
        if self.is_on:
            self._waiting = [(p, p.grad) for p in self._parameters() if p.grad is not None]
            for parameter, _ in self._waiting:
                parameter.grad = None

    def unscale(self) -> None:
        """Makes the gradients of a step those of the unscaled loss."""
        if not self.is_on:
            return
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.factor)
        for parameter, earlier in self._waiting:
            found = parameter.grad
            parameter.grad = earlier.clone() if found is None else found.add_(earlier)

    def fall(self) -> None:
        """Halves the scale, and forgets the gradients of a step that is taken again."""
        self._state.loss_scale /= 2
        self._state.steps_at_loss_scale = 0
        for parameter in self._parameters():
            parameter.grad = None

    def count(self) -> None:
        """Counts a step whose gradients were finite."""
        if not self.is_on:
            return
        self._waiting = []
        self._state.steps_at_loss_scale += 1
        if self._state.steps_at_loss_scale == GROWTH_STEPS:
            self._state.loss_scale *= 2
            self._state.steps_at_loss_scale = 0

    def _parameters(self) -> list[Tensor]:
        groups = [g for optimizer in self._optimizers.optimizers for g in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]
