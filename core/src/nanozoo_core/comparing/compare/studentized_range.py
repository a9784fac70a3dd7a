"""The distribution of the studentized range, behind Tukey's test: the largest difference between k
means of normal samples, over the estimate of their standard error with v degrees of freedom.

    P(Q > q) = 1 - int f_v(s) W(q s) ds,   W(w) = k int phi(z) (Phi(z) - Phi(z - w))^(k - 1) dz

where f_v is the density of sqrt(chi2_v / v) (Tukey 1953; Lund & Lund 1983, AS 190).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

NODES, WEIGHTS = np.polynomial.legendre.leggauss(80)
REACH = 9.0  # standard deviations beyond which a normal density is below 1e-18
TINY = 1e-9  # of a probability; the powers of smaller ones are denormal numbers, which are slow


@cache
def survival(q: float, k: int, v: int) -> float:
    """P(Q > q) of `k` means with `v` degrees of freedom, to about 1e-6."""
    spread = REACH / math.sqrt(2 * v)  # of s, whose standard deviation is about 1 / sqrt(2 v)
    s, s_weights = _nodes(max(0.0, 1 - spread), 1 + spread)
    log_density = (
        0.5 * v * math.log(v) - math.lgamma(0.5 * v) - (0.5 * v - 1) * math.log(2)
        + (v - 1) * s.log() - 0.5 * v * s**2
    )  # fmt: skip
    z, z_weights = _nodes(-REACH, REACH)
    phi = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    ndtr = torch.special.ndtr
    inside = ndtr(z)[None] - ndtr(z[None] - q * s[:, None])  # (s, z)
    inside = torch.where(inside > TINY, inside, 0.0)
    of_range = k * (inside ** (k - 1) * phi * z_weights).sum(dim=1)
    return float(1 - (log_density.exp() * of_range * s_weights).sum())


@cache
def student_quantile(probability: float, v: int) -> float:
    """t with P(|T| > t) = `probability` of Student's distribution: sqrt(2) T is the range of two
    means."""
    low, high = 0.0, 1.0
    while survival(high * math.sqrt(2), 2, v) > probability:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        if survival(middle * math.sqrt(2), 2, v) > probability:
            low = middle
        else:
            high = middle
    return high


def _nodes(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of Gauss's rule on an interval, float64."""
    half = (high - low) / 2
    nodes = torch.from_numpy(half * NODES + (low + high) / 2)
    return nodes, torch.from_numpy(half * WEIGHTS)
