"""Categorical draws in float64.

Drawing with float32 Gumbel noise cuts off its tail, which lowers the temperature unseen: samples
look better and follow another distribution (arXiv 2409.02908).

V categories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.machine.precision import in_float64


def draw_categorical(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draws.

    Args:
        weights: (..., V), non-negative and not all zero; they need not sum to one.
        uniforms: (...) float64 in [0, 1), on any device.

    Returns: (...) int64; a category of weight zero is never drawn.
    """
    cumulative = in_float64(weights).cumsum(-1)
    total = cumulative[..., -1:]
    # u * total may round up to total, beyond the last category that has weight.
    point = torch.minimum(uniforms.to(total.device)[..., None] * total, total.nextafter(0 * total))
    drawn = torch.searchsorted(cumulative, point, right=True)[..., 0]
    return drawn.to(weights.device)
