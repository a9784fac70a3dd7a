"""Rotary position embedding: queries and keys turned by an angle that grows with their position.

B batch, H heads, T sequence, K head_dim, R rotary_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(
    positions: Tensor, rotary_dim: int, *, base: float = 1e4
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * base^(-2i/R), i = 0 .. R/2 - 1.

    Args:
        positions: (T,) or (B, T), integer or float.
        rotary_dim: R, even: how many channels of each head turn.

    Returns: two float32 tensors, (T, R/2) or (B, T, R/2).
    Raises: ValueError when rotary_dim is odd.
    Reference: arXiv 2104.09864, section 3.2.
    """
    if rotary_dim % 2:
        raise ValueError(f"rotary_dim={rotary_dim} must be even")
    # Low precision cannot hold the angle of a late position, so this stays float32 everywhere.
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] * base ** (-exponent / rotary_dim)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first R channels of each head of x (B, H, T, K); the others pass through.

    Channel i is paired with channel i + R/2 (half-split pairs). `cos` and `sin` are those of
    `rotary_angles`. Returns: (B, H, T, K) in the dtype of x.
    """
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, R/2)
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return torch.cat([part.to(x.dtype) for part in (*turned, rest)], dim=-1)
