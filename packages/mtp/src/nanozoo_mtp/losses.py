"""The losses of all horizons, and three ways to their gradients.

B batch, T sequence, D model_dim, V vocabulary; horizons i = 1 .. n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nanozoo_core.contract import Batch
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.multi_token_adapter import horizon_loss, targets_of
from nanozoo_core.nn.rotary import Angles
from nanozoo_core.ops.linear_cross_entropy import linear_cross_entropy
from nanozoo_mtp.model import MTP


def horizon_losses(model: MTP, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i w_i L_i, differentiable, and the L_i (n,) alone. L_i is the mean of -log P_i(x_{t+i})
    in nats over the positions where x_{t+i} counts.

    Args: weights: (n,).
    """
    z, angles = model.trunk(batch.inputs)
    way = model.config.head_backward
    if not model.config.has_own_heads or not torch.is_grad_enabled():
        way = "joint"
    if way == "sequential":
        return _head_by_head(model, batch, weights, z, angles)
    if model.config.head_type == "shared":
        per_token = shared_losses(model, batch, model.look_ahead(1, z, angles))
        losses = [
            _mean(found, targets_of(model, batch, horizon)[1])
            for horizon, found in enumerate(per_token, start=1)
        ]
    else:
        loss = _checkpointed_loss if way == "checkpoint" else _loss
        losses = [loss(model, batch, horizon, z, angles) for horizon in range(1, len(weights) + 1)]
    together = torch.stack(losses)
    return torch.dot(together, weights.to(together.dtype)), together.detach()


def token_losses(model: MTP, batch: Batch) -> list[Tensor]:
    """-log P_i(x_{t+i}) of every position, (B, T) for each horizon, whether or not it counts."""
    if not model.config.has_own_heads:
        return shared_losses(model, batch, model.features(batch.inputs))
    return [
        _token_losses(model, features, targets_of(model, batch, horizon)[0])
        for horizon, features in enumerate(model.horizons(batch.inputs), start=1)
    ]


def shared_losses(model: MTP, batch: Batch, features: Tensor) -> list[Tensor]:
    """One head against every horizon, (B, T) each.

    The normaliser is the same for all: l_i = l_1 + x . (u_{y_1} - u_{y_i}), which spares all
    logits but one.
    """
    weight = model.output_weight
    targets = [
        targets_of(model, batch, horizon)[0]
        for horizon in range(1, model.config.num_mtp_tokens + 1)
    ]
    first = _token_losses(model, features, targets[0])
    scores = [(features * F.embedding(target, weight)).sum(-1) for target in targets]
    return [first + (scores[0] - score).to(first.dtype) for score in scores]


def _loss(model: MTP, batch: Batch, horizon: int, z: Tensor, angles: Angles) -> Tensor:
    """L_i of one head."""
    return horizon_loss(model, batch, horizon, model.look_ahead(horizon, z, angles))


def _checkpointed_loss(model: MTP, batch: Batch, horizon: int, z: Tensor, angles: Angles) -> Tensor:
    """The same, keeping neither the head's activations nor the gradients of its logits."""
    features = checkpoint(
        model.look_ahead, horizon, z, angles, use_reentrant=False, preserve_rng_state=False
    )
    targets, counts = targets_of(model, batch, horizon)
    return _mean(_token_losses(model, features, targets), counts)


def _token_losses(model: MTP, features: Tensor, targets: Tensor) -> Tensor:
    """(B, T) nats; the backward pass makes the logits again."""
    losses = linear_cross_entropy(
        features.flatten(0, 1), model.output_weight, targets.flatten(), reduction="none"
    )
    return losses.unflatten(0, targets.shape)


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    return (losses * counts).sum() / counts.sum().clamp(min=1)


# -- each head's gradients before the next head --------------------------------------------------


@uncompiled(with_callees=True)  # a compiler cannot trace a backward pass inside the forward one
def _head_by_head(
    model: MTP, batch: Batch, weights: Tensor, z: Tensor, angles: Angles
) -> tuple[Tensor, Tensor]:
    first = model.config.num_trunk_layers
    heads = model.blocks[first:] if model.config.head_type == "block" else model.maps
    parameters = [model.output_weight, *(p for head in heads for p in head.parameters())]

    def loss(horizon: int, stream: Tensor) -> Tensor:
        return _loss(model, batch, horizon, stream, angles)

    return _HeadByHead.apply(loss, weights, z, *parameters)


class _HeadByHead(torch.autograd.Function):
    """sum_i w_i L_i(z), with all gradients ready when the forward pass ends.

    After each head its activations are gone and only sums remain: the gradients of the stream z,
    of U and of the heads' weights (2404.19737, figure 2). They are handed to autograd in the
    backward pass like any others, so hooks on parameters see one gradient, whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[[int, Tensor], Tensor],
        weights: Tensor,
        z: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_()
        sums: list[Tensor | None] = [None] * (1 + len(parameters))
        losses = []
        for number, weight in enumerate(weights):
            with torch.enable_grad():
                found = loss(number + 1, leaf)
            losses.append(found.detach())
            # The forward pass's autocast must not reach the backward one.
            with torch.autocast(z.device.type, enabled=False):
                gradients = torch.autograd.grad(
                    found, (leaf, *parameters), weight.to(found.dtype), allow_unused=True
                )
            _add(sums, gradients)
            del found, gradients
        ctx.gradients = sums
        together = torch.stack(losses)
        ctx.mark_non_differentiable(together)
        return torch.dot(together, weights.to(together.dtype)), together

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _losses: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("head_backward=sequential makes its gradients once; use joint")
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(upstream)
        return None, None, *gradients


def _add(sums: list[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
    for place, gradient in enumerate(gradients):
        if gradient is not None:
            held = sums[place]
            sums[place] = gradient if held is None else held.add_(gradient)
