"""The bound of exact conditionals, enumerated over every mask, through the fused loss."""

from __future__ import annotations

import math

import torch
import toy_scores as exact
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.ops.linear_cross_entropy import linear_cross_entropy
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.exact import exact_masked_bound


def test_enumerated_bound_is_minus_log_p_for_every_sequence():
    """All 2^3 masks of each sequence, exact conditionals, through the fused loss."""

    def token_loss(targets: Tensor, masked: Tensor, time: Tensor) -> Tensor:
        return fused_losses(exact.masked_log_measure, targets, masked)

    bound = exact_masked_bound(token_loss, exact.SEQUENCES)
    assert_close(bound, -toy.joint().log(), rtol=0, atol=1e-10)


def fused_losses(log_measure, targets: Tensor, masked: Tensor) -> Tensor:
    logits = log_measure(targets.masked_fill(masked, toy.MASK_ID)) + math.log(3)
    losses = linear_cross_entropy(
        logits.flatten(0, 1),
        torch.eye(3, dtype=torch.float64),
        targets.flatten(),
        normalised=False,
        reduction="none",
    )
    return torch.where(masked, losses.view_as(targets), 0.0)
