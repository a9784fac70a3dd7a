"""Other ways to the exponents of a ladder, as checks of the surface and never as results.

Hoffmann et al. 2022 (arXiv 2203.15556), approaches 1 and 2: the size of the lowest loss at a
compute grows as C^a. The first takes the size from the envelope of all runs, the second from the
vertex of a parabola in log N. On the surface L(N, D) it is a = beta / (alpha + beta). The third
check is the surface itself, fitted anew without each of its rungs: intervals over seeds know
nothing of a wrong form.

Shapes: R rungs, G places of a grid of computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from nanozoo_core.comparing.scale import frontier
from nanozoo_core.comparing.scale.estimate import Estimate
from nanozoo_core.comparing.scale.frontier import Frontier
from nanozoo_core.comparing.scale.multiplier import Multiplier, at_loss
from nanozoo_core.comparing.scale.power_law import Array, PowerLaw
from nanozoo_core.comparing.scale.scores import Scores

COMPUTES = 16
"""Of the grid; more would only follow the corners of a polygon."""
FEWEST_SIZES = 4  # for a parabola at one compute
WIDEST = 4.0  # times their middle: over a wider range of sizes a parabola is biased
FEWEST_VERTICES = 3  # for a line through them


@dataclass(frozen=True)
class Growth:
    """How the best size grows with the compute."""

    exponent: float | None
    """a of N ~ C^a; None where there are too few computes."""
    computes: int
    """At which there was a best size."""


def by_envelope(scores: Scores) -> Growth:
    """Approach 1: at each compute the size of the run with the lowest loss."""
    grid, curves = curves_of(scores)
    sizes = np.log([scores.size(rung) for rung in scores.rungs])
    measured = np.isfinite(curves).any(0)
    best = sizes[np.argmin(curves[:, measured], 0)]
    return _growth(grid[measured], best)


def by_parabolas(scores: Scores) -> Growth:
    """Approach 2: at each compute at which enough sizes were measured, none of them far from the
    others, the vertex of the parabola of the log losses over log N; where it lies among them."""
    grid, curves = curves_of(scores)
    sizes = np.log([scores.size(rung) for rung in scores.rungs])
    computes, best = [], []
    for compute, losses in zip(grid, curves.T, strict=True):
        there = np.flatnonzero(np.isfinite(losses))
        if len(there) < FEWEST_SIZES or np.ptp(sizes[there]) > 2 * np.log(WIDEST):
            continue
        centre = sizes[there].mean()
        bend, slope, _ = np.polyfit(sizes[there] - centre, losses[there], 2)
        if bend > 0:
            vertex = centre - slope / (2 * bend)
            if sizes[there[0]] <= vertex <= sizes[there[-1]]:
                computes.append(compute)
                best.append(vertex)
    return _growth(np.array(computes), np.array(best))


def _growth(log_computes: Array, log_sizes: Array) -> Growth:
    count = len(log_computes)
    if count < FEWEST_VERTICES:
        return Growth(None, count)
    return Growth(float(np.polyfit(log_computes, log_sizes, 1)[0]), count)


def curves_of(scores: Scores) -> tuple[Array, Array]:
    """Log computes (G,), and the log losses (R, G) of each rung's runs there, by a line between two
    budgets; infinite outside of what was measured. The seeds of a point count by their mean."""
    cost = np.log(scores.flops)
    grid = np.linspace(cost.min(), cost.max(), COMPUTES)
    curves = np.full((len(scores.rungs), COMPUTES), np.inf)
    for row, rung in enumerate(scores.rungs):
        at = scores.of(rung)
        budgets = np.array([scores.budget[n] for n in at])
        ends = [at[budgets == budget] for budget in np.unique(budgets)]
        places = np.array([cost[end].mean() for end in ends])
        losses = np.array([scores.log_loss[end].mean() for end in ends])
        inside = (grid >= places[0] - 1e-9) & (grid <= places[-1] + 1e-9)
        curves[row, inside] = np.interp(grid[inside], places, losses)
    return grid, curves


# -- without one rung ------------------------------------------------------------------------------


def refitted(
    model: Estimate, control: Estimate, found: Sequence[Multiplier]
) -> list[tuple[float, float]] | None:
    """The smallest and the largest of each multiplier in compute when any rung is left out of both
    surfaces, 0 or infinity where one of them is a bound; None where too few rungs would be left.
    A rung that a model does not have leaves its surface as it is."""
    if model.lack is not None or control.lack is not None:
        return None
    rungs = list(dict.fromkeys([*control.scores.rungs, *model.scores.rungs]))
    edges: list[Frontier] = []
    for one in (model, control):
        less, own = one.refits, one.scores.rungs
        if less is None:
            return None
        laws = [less[own.index(r) :][:1] if r in own else one.surface[:1] for r in rungs]
        edges.append(frontier.of_surface(reduce(PowerLaw.joined, laws), one.scores, "flops"))
    bands = []
    for each in found:
        logs = at_loss(edges[0], edges[1], edges[0].at(float(np.log(each.cost))))
        bands.append((float(np.exp(logs.min())), float(np.exp(logs.max()))))
    return bands
