"""Depthwise causal convolution over a sequence, as Mamba puts it before its scan.

Shapes: B batch, L sequence, C channels, K kernel width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu"] | None


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = "silu",
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """y_t = activation(bias + sum_j weight_j x_{t-K+1+j}), channel by channel.

    Args:
        x: (B, L, C).
        weight: (C, K); its last column multiplies the current position.
        bias: (C,) or None.
        activation: silu or None.
        initial_state: (B, C, K-1), the inputs before the first position, oldest first; None is
            zeros.
        segments: (B, L) integers; no position sees inputs of before its number last changed. The
            initial state belongs to the first segment.

    Returns: (B, L, C) of x's type.
    """
    length, width = x.shape[1], weight.shape[1]
    if initial_state is None:
        padded = F.pad(x, (0, 0, width - 1, 0))  # (B, K - 1 + L, C)
    else:
        padded = torch.cat([initial_state.mT.to(x.dtype), x], dim=1)
    runs = None
    if segments is not None:
        runs = F.pad((segments[:, 1:] != segments[:, :-1]).cumsum(1), (width, 0))
    y = x * weight[:, -1]
    for j in range(width - 1):
        term = padded[:, j : j + length]
        if runs is not None:
            term = term * (runs[:, j : j + length] == runs[:, width - 1 :])[..., None]
        y = y + term * weight[:, j]
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)


def causal_conv1d_step(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = "silu",
) -> tuple[Tensor, Tensor]:
    """One position of `causal_conv1d`.

    Args:
        state: (B, C, K-1), the last inputs, oldest first.
        x: (B, C).

    Returns: y (B, C) of x's type and the new state.
    """
    window = torch.cat([state, x[..., None].to(state.dtype)], dim=-1)  # (B, C, K)
    y = (window * weight).sum(-1)
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype), window[..., 1:]
