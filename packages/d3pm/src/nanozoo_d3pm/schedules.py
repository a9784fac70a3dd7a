"""Discrete noise schedules: log of the kept share, log keep_t = sum_{s<=t} log(1 - beta_s).

All tables are (T + 1,) float64 on the CPU, indexed by t = 0 .. T; entry 0 is "no noise".

T timesteps, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

GRID_POINTS = 256


def steps(num_timesteps: int) -> Tensor:
    """0 .. T as float64, on the CPU whatever the default device."""
    return torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu")


def linear_log_keep(num_timesteps: int) -> Tensor:
    """keep_t = 1 - t / T; for absorbing states this is beta_t = 1 / (T - t + 1)."""
    return torch.log1p(-steps(num_timesteps) / num_timesteps)


def cosine_log_keep(num_timesteps: int) -> Tensor:
    """beta_t = min(1 - f(t) / f(t-1), 0.999), f(t) = cos((t/T + 0.008) / 1.008 * pi/2).

    Reference: arXiv 2107.03006, appendix A.3; f is not squared, unlike in images (2102.09672).
    """
    f = torch.cos((steps(num_timesteps) / num_timesteps + 0.008) / 1.008 * math.pi / 2)
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cat([f.new_zeros(1), torch.log1p(-beta).cumsum(0)])


def gaussian_betas(num_timesteps: int, beta_min: float, beta_max: float) -> Tensor:
    """(T + 1,), entry 0 unused: linear from beta_min to beta_max, which are meant for T = 1000 and
    are scaled so that the whole noise stays the same."""
    betas = torch.linspace(beta_min, beta_max, num_timesteps, dtype=torch.float64, device="cpu")
    return torch.cat([betas.new_zeros(1), betas * 1000 / num_timesteps])


def log_grid(low: float, high: float, num_points: int = GRID_POINTS) -> Tensor:
    """Noise amounts on an even logarithmic grid."""
    ends = math.log(low), math.log(high)
    return torch.linspace(*ends, num_points, dtype=torch.float64, device="cpu").exp()


def entropy(probs: Tensor) -> Tensor:
    """Of the last axis, in nats."""
    return -torch.xlogy(probs, probs).sum(-1)


def uniform_information(unigram: Tensor, log_keep: Tensor) -> Tensor:
    """I(x_t; x_0) / H(x_0) under uniform resampling, for each entry of log_keep (...)."""
    vocab_size = unigram.numel()
    noise = -torch.expm1(log_keep)[..., None]
    same = log_keep.exp()[..., None] + noise / vocab_size
    other = noise / vocab_size
    marginal = entropy(log_keep.exp()[..., None] * unigram + other)
    conditional = -(torch.xlogy(same, same) + (vocab_size - 1) * torch.xlogy(other, other))
    return (marginal - conditional[..., 0]) / entropy(unigram)


def invert_information(
    information: Callable[[Tensor], Tensor], grid: Tensor, num_timesteps: int
) -> Tensor:
    """Noise amounts (T + 1,) at which I(x_t; x_0) / H(x_0) = 1 - t / T.

    Args: information: of noise amounts, falling from 1; grid: (G,) amounts to interpolate between,
        linearly in the logarithm. Entry 0 is 0; what lies beyond the grid takes its last point.
    Reference: arXiv 2107.03006, appendix A.3.
    """
    values = information(grid).cummin(0).values
    wanted = 1 - steps(num_timesteps)[1:] / num_timesteps
    # searchsorted wants ascending values: count the points whose information is still above.
    above = torch.searchsorted(values.flip(0), wanted, right=True)
    index = (grid.numel() - above).clamp(1, grid.numel() - 1)
    high, low = values[index - 1], values[index]
    share = ((high - wanted) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    logs = grid.log()
    amounts = (logs[index - 1] + share * (logs[index] - logs[index - 1])).exp()
    return torch.cat([amounts.new_zeros(1), amounts])
