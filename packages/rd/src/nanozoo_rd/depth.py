"""How many iterations a training step runs: the law of p, its means, and its draw.

p is drawn once per optimiser step, for all rows and ranks. Nothing here imports torch at the top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Sampling = Literal["lognormal_poisson", "fixed", "uniform"]
# The rate's logarithm is integrated over +-8 standard deviations: the tail beyond is 1e-15.
_GRID = [i / 8 for i in range(-64, 65)]


@dataclass(frozen=True)
class DepthLaw:
    """lognormal_poisson: p = 1 + Poisson(lam), log lam ~ N(log mean - sigma^2 / 2, sigma^2), so
    that E[p] = mean + 1. fixed: p = round(mean). uniform: 1 .. 2 round(mean) - 1. A `largest` one
    clamps p.

    Reference: arXiv 2502.05171, eq. 2; sampling "poisson-lognormal-filling" of its code.
    """

    sampling: Sampling
    mean: float
    sigma: float
    largest: int | None = None

    def at_most(self, depth: int) -> float:
        """P(p <= depth) before the clamp."""
        if self.sampling == "fixed":
            return float(depth >= round(self.mean))
        if self.sampling == "uniform":
            return min(1.0, max(0, depth) / (2 * round(self.mean) - 1))
        return sum(_poisson_mixture(self.mean, self.sigma, max(0, depth)))

    def expected(self, cap: int | None = None) -> float:
        """E[min(p, cap)], the mean of p where `cap` is None."""
        caps = [c for c in (cap, self.largest) if c is not None]
        if not caps:
            return self.mean + 1 if self.sampling == "lognormal_poisson" else round(self.mean)
        # E[min(p, c)] = sum over j < c of P(p > j)
        return sum(1 - self.at_most(j) for j in range(min(caps)))

    def draw(self, generator: torch.Generator) -> int:
        """One p >= 1."""
        import torch

        if self.sampling == "fixed":
            depth = round(self.mean)
        elif self.sampling == "uniform":
            depth = int(torch.randint(1, 2 * round(self.mean), (), generator=generator))
        else:
            normal = torch.randn((), generator=generator, dtype=torch.float64)
            rate = torch.exp(math.log(self.mean) - self.sigma**2 / 2 + self.sigma * normal)
            depth = int(torch.poisson(rate, generator=generator)) + 1
        return depth if self.largest is None else min(depth, self.largest)


@cache
def _poisson_mixture(mean: float, sigma: float, count: int) -> list[float]:
    """P(Poisson(lam) = k) for k = 0 .. count - 1, lam log-normal with this mean."""
    centre = math.log(mean) - sigma**2 / 2
    if sigma == 0:
        points = [(1.0, centre)]
    else:
        weight = (_GRID[1] - _GRID[0]) / math.sqrt(2 * math.pi)
        points = [(weight * math.exp(-z * z / 2), centre + sigma * z) for z in _GRID]
    return [
        sum(w * math.exp(k * log - math.exp(log) - math.lgamma(k + 1)) for w, log in points)
        for k in range(count)
    ]
