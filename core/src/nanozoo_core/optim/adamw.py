"""AdamW whose decay can be that of the speedrun: cautious, and by the square of the rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """torch's AdamW with two more settings per group, read at every step.

    cautious: only entries that the step already moves towards zero decay. wd_power: 1 decays by
    lr * decay, 2 by lr^2 * decay, which fades with the square of a schedule. `decay` stands for the
    group's weight decay; torch's own `weight_decay` is set from it.
    Reference: arXiv 2510.12402; HEAD of KellerJordan/modded-nanogpt.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            share = group["decay"] * (group["lr"] if group["wd_power"] == 2 else 1.0)
            group["weight_decay"] = 0.0 if group["cautious"] else share
            if group["cautious"] and share:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._decay(parameter, group["betas"][0], group["lr"] * share)
        return super().step(closure)

    def _decay(self, parameter: Tensor, beta1: float, amount: float) -> None:
        """Ahead of the step: it has the sign of the first moment that it will find, and an entry
        without gradient so far, such as an embedding's row never seen, does not decay."""
        moment = self.state[parameter].get("exp_avg")
        grad = parameter.grad
        assert grad is not None
        moment = grad if moment is None else torch.lerp(moment, grad, 1 - beta1)
        shrinks = (moment * parameter).gt_(0)
        parameter.mul_(shrinks.mul_(-amount).add_(1))
