"""What one optimiser step measured: its loss and metrics over micro-steps and ranks, its bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training.divergence import diverged
from nanozoo_core.training.loss_scale import LossScale
from nanozoo_core.training.run_folder import RunFolder, TrainState


class StepMetrics:
    """Gathers the numbers of a step without waiting for the device."""

    def __init__(self, ranks: Ranks, device: torch.device, num_micro_steps: int) -> None:
        self._ranks, self._device = ranks, device
        self._num_micro_steps = num_micro_steps
        self._means: dict[str, Tensor] = {}
        self._num_bytes = 0

    def add(self, loss: Tensor, metrics: dict[str, Tensor], num_bytes: int) -> None:
        """Adds a micro-step."""
        self._num_bytes += num_bytes
        for name, value in {"loss": loss.detach(), **metrics}.items():
            self._means[name] = self._means.get(name, 0.0) + value / self._num_micro_steps

    def add_whole(self, metrics: dict[str, Tensor]) -> None:
        """Adds what is known of the whole step, the same on every rank."""
        self._means |= metrics

    def check_finite(
        self, grad_norm: Tensor, state: TrainState, folder: RunFolder, scale: LossScale
    ) -> bool:
        """Whether the step can be taken, the same on every rank; not so with gradients that are not
        finite under a loss scale which can fall: they are to be computed again.

        Raises: NonFiniteError on every rank if any rank has a loss or gradient that is not finite,
        before weights change."""
        loss = self._means["loss"]
        wrong = torch.stack([~loss.isfinite(), ~grad_norm.isfinite()]).to(torch.float32)
        bad_loss, bad_gradient = self._ranks.max(wrong).tolist()
        if not bad_loss and (not bad_gradient or scale.can_fall):
            return not bad_gradient
        what = "loss" if bad_loss else "gradient norm"
        sentence = f"the {what} is not finite at step {state.step}, before the weights were touched"
        raise diverged(sentence + scale.remark, state, folder)

    def over_ranks(self, *, with_means: bool) -> tuple[int, dict[str, float]]:
        """The bytes of the whole step, and the means of its metrics over ranks where they are asked
        for: they cost a wait for the device."""
        values = torch.tensor([float(self._num_bytes)], dtype=torch.float64)
        names = list(self._means) if with_means else []
        if names:
            metrics = torch.stack([self._means[name].cpu().double() for name in names])
            values = torch.cat([values, metrics / self._ranks.world_size])
        if self._ranks.world_size > 1:
            values = self._ranks.sum(values.to(self._device)).cpu()
        return int(values[0]), dict(zip(names, values[1:].tolist(), strict=True))
