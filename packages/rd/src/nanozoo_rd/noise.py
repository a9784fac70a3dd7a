"""Initial states: noise that is a pure function of a key, the row, the position and the channel.

B batch, T sequence, D model_dim. Batches, ranks, windows and decoding steps all see the same noise
because nothing is drawn in call order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CUT = 3.0  # standard deviations
_MASK = (1 << 32) - 1


def truncated_normal(
    key: Tensor, positions: Tensor, dim: int, rows: Tensor | None = None
) -> Tensor:
    """Standard normal noise cut at 3, float32.

    Args:
        key: int64 scalar below 2^32, as a tensor so that compiled code serves every key.
        positions: (T,) or (B, T) int64.
        rows: (B,) int64 to give each row its own noise; without, rows differ in nothing.

    Returns: (T, D) or (B, T, D).
    """
    state = _mix(key)
    if rows is not None:
        state = _mix(state ^ rows)[:, None]  # (B, 1)
    state = _mix(state ^ positions)[..., None]  # (..., T, 1)
    bits = _mix(state ^ torch.arange(dim, device=positions.device))  # (..., T, D)
    uniform = (bits.float() + 0.5) * 2.0**-32
    # Inverse CDF: u in (0, 1) to (Phi(-3), Phi(3)), written with erf.
    return math.sqrt(2) * torch.erfinv((2 * uniform - 1) * math.erf(_CUT / math.sqrt(2)))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers held in int64 (hash-prospector's lowbias32 family), whose
    multipliers are below 2^31 so that no product overflows."""
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & _MASK
    return x ^ (x >> 15)
