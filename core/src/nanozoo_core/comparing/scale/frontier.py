"""The least loss that a cost buys, from a fitted surface or from the points alone, for many copies
of the same data at once.

Shapes: C copies, G places of a grid of costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanozoo_core.comparing.scale.power_law import Array, PowerLaw
from nanozoo_core.comparing.scale.repetition import effective
from nanozoo_core.comparing.scale.scores import Scores

PLACES = 400  # of a grid of costs
SIZES = 96  # tried between the smallest and the largest rung
CHUNK = 64  # copies at once


@dataclass(frozen=True)
class Frontier:
    """Log losses (C, G) that fall, or stay, along a grid (G,) of log costs: those that were
    measured, and none beyond."""

    log_cost: Array
    log_loss: Array

    def at(self, log_cost: float) -> Array:
        """(C,): log losses at a cost inside the grid."""
        place = np.interp(log_cost, self.log_cost, np.arange(len(self.log_cost)))
        left = min(int(place), len(self.log_cost) - 2)
        share = place - left
        before, after = self.log_loss[:, left], self.log_loss[:, left + 1]
        return np.asarray(before + share * (after - before))

    def least_cost(self, log_loss: Array) -> Array:
        """(C,): the logarithm of the least cost at which each copy reaches a loss of its own; inf
        where it never does, -inf where its cheapest point is better already."""
        found = np.empty(len(log_loss))
        for row, (losses, wanted) in enumerate(zip(self.log_loss, log_loss, strict=True)):
            if wanted > losses[0]:
                found[row] = -np.inf
            elif wanted < losses[-1]:
                found[row] = np.inf
            else:  # the first place that is as good, between it and the one before
                right = int(np.searchsorted(-losses, -wanted))
                left = max(right - 1, 0)
                drop = losses[left] - losses[right]
                share = (losses[left] - wanted) / drop if drop > 0 else 0.0
                step = self.log_cost[right] - self.log_cost[left]
                found[row] = self.log_cost[left] + share * step
        return found


def of_surface(law: PowerLaw, scores: Scores, axis: str, *, beyond: float = 1.0) -> Frontier:
    """min over n of L(n, cost / cost per token at n), n between the smallest and the largest rung
    and the cost between the cheapest and the dearest point; the cost of a token is interpolated
    between the rungs in logarithms.

    Args: beyond: by which the largest cost and the largest size are multiplied; above 1 the
        frontier is extrapolated, from the dearest point on, and holds nothing below it.
    """
    sizes = np.log([scores.size(rung) for rung in scores.rungs])
    each = np.log([scores.per_token(axis, rung) for rung in scores.rungs])
    tried = np.linspace(sizes[0], sizes[-1] + np.log(beyond), SIZES)
    slope = (each[-1] - each[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else 0.0
    per_token = np.interp(tried, sizes, each) + slope * np.maximum(tried - sizes[-1], 0)
    cost = np.log(scores.cost(axis))
    start = cost.max() if beyond > 1 else cost.min()
    grid = np.linspace(start, cost.max() + np.log(beyond), PLACES)
    tokens = effective(np.exp(grid[:, None] - per_token), scores.unique)  # (G, sizes)
    logs = np.stack(np.broadcast_arrays(tried, np.log(tokens)), -1)  # (G, sizes, 2)
    parts = [
        law[start : start + CHUNK].log_loss(logs).min(-1)
        for start in range(0, len(law.log_e), CHUNK)
    ]
    return _falling(grid, np.concatenate(parts))


def of_budgets(law: PowerLaw, scores: Scores, rung: str) -> Frontier:
    """The losses of one size over the text that it reads, in bytes."""
    places = scores.of(rung)
    per_token = scores.per_token("bytes", rung)
    amount = np.log(scores.bytes[places])
    grid = np.linspace(amount.min(), amount.max(), PLACES)
    tokens = np.log(effective(np.exp(grid) / per_token, scores.unique))
    size = np.full(PLACES, np.log(scores.size(rung)))
    return _falling(grid, law.log_loss(np.stack([size, tokens], -1)))


def of_sizes(law: PowerLaw, scores: Scores, num_bytes: float) -> Frontier:
    """The losses after so many bytes of text, over the weights that multiply a token."""
    rungs = scores.rungs
    sizes = np.log([scores.size(rung) for rung in rungs])
    grid = np.linspace(sizes[0], sizes[-1], PLACES)
    tokens = num_bytes / scores.per_token("bytes", rungs[0])
    filled = np.full(PLACES, np.log(effective(tokens, scores.unique)))
    return _falling(grid, law.log_loss(np.stack([grid, filled], -1)))


def of_points(scores: Scores, log_losses: Array, axis: str) -> Frontier:
    """The lower convex hull, in logarithms, of the points that no cheaper one beats; the seeds of a
    point are one, by their mean.

    Args: log_losses: (C, N).
    """
    cells = list(dict.fromkeys(scores.cells))
    of_cell = np.array([[cell == one for one in scores.cells] for cell in cells]) * 1.0
    of_cell /= of_cell.sum(1, keepdims=True)
    cost = of_cell @ np.log(scores.cost(axis))
    order = np.argsort(cost)
    cost, losses = cost[order], (log_losses @ of_cell.T)[:, order]
    grid = np.linspace(cost[0], cost[-1], PLACES)
    return _falling(grid, np.stack([np.interp(grid, *_hull(cost, row)) for row in losses]))


def _hull(cost: Array, losses: Array) -> tuple[Array, Array]:
    """The corners, from the cheapest point to that of the lowest loss."""
    end = int(np.argmin(losses))
    corners: list[int] = []
    for here in range(end + 1):
        while len(corners) > 1 and _is_above(corners[-2], corners[-1], here, cost, losses):
            corners.pop()
        corners.append(here)
    return cost[corners], losses[corners]


def _is_above(left: int, middle: int, right: int, cost: Array, losses: Array) -> bool:
    """Whether the middle point lies on or above the line between its neighbours."""
    rise = (losses[middle] - losses[left]) * (cost[right] - cost[left])
    return bool(rise >= (losses[right] - losses[left]) * (cost[middle] - cost[left]))


def _falling(grid: Array, log_loss: Array) -> Frontier:
    """A larger cost buys no worse a loss: the smaller one would be paid."""
    return Frontier(grid, np.minimum.accumulate(log_loss, -1))
