"""The compute multiplier: what the control pays for a model's score over what the model pays, with
its interval, at each rung, and whether it rises or falls with scale.

Sources: the compute-equivalent gain of arXiv 2505.04075, as a function of the compute as in arXiv
2511.21622.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanozoo_core.comparing.scale import frontier
from nanozoo_core.comparing.scale.estimate import Estimate, interval
from nanozoo_core.comparing.scale.frontier import Frontier
from nanozoo_core.comparing.scale.power_law import Array

MIDDLE = 0.5  # of a rung's budget: the compute at which its multiplier is read
MOST_CENSORED = 0.1  # of the copies may lie outside; with more, that end of the interval is open
MIN_TREND = 3  # rungs with a multiplier, for a slope
LEVEL = 0.05


@dataclass(frozen=True)
class Multiplier:
    """How many times as much the control pays at one rung; above 1 the model is better."""

    rung: str
    cost: float
    """What the model pays: FLOPs, seconds, bytes, or weights that multiply a token."""
    loss: float
    """The score that both reach, in bits per byte."""
    value: float | None
    """None where the control's points do not reach that score: then `bound` says what is known."""
    bound: tuple[str, float] | None
    """(">", m) where the control never reached the score within m times the cost, or ("<", m)."""
    interval: tuple[float, float] | None
    """Ends that more than a tenth of the copies cross are infinite, or 0."""
    logs: Array
    """(copies,): log M, infinite where a copy is outside."""
    refits: tuple[float, float] | None = None
    """The smallest and the largest value when any rung is left out of both surfaces."""


@dataclass(frozen=True)
class Trend:
    """The slope of log M on log C."""

    slope: float
    """For each factor of e in compute."""
    interval: tuple[float, float] | None
    p: float | None
    """Two-sided, of the copies."""
    without_lowest: float | None
    """The slope of all rungs but the lowest; None where too few are left."""

    @property
    def per_decade(self) -> float:
        return 10**self.slope


def at_loss(model: Frontier, control: Frontier, log_losses: Array) -> Array:
    """(C,): log M, the cost at which the control reaches each copy's loss over the model's own."""
    return control.least_cost(log_losses) - model.least_cost(log_losses)


def multiplier(rung: str, model: Frontier, control: Frontier, log_cost: float) -> Multiplier:
    """At the model's score for a cost. Both frontiers hold the same number of copies."""
    reached = model.at(log_cost)
    logs = at_loss(model, control, reached)
    own = float(model.least_cost(reached)[0])
    value, bound = None, None
    if np.isposinf(logs[0]):
        bound = (">", math.exp(control.log_cost[-1] - own))
    elif np.isneginf(logs[0]):
        bound = ("<", math.exp(control.log_cost[0] - own))
    else:
        value = math.exp(logs[0])
    return Multiplier(
        rung=rung,
        cost=math.exp(log_cost),
        loss=math.exp(reached[0]),
        value=value,
        bound=bound,
        interval=None if value is None else _censored_interval(logs[1:]),
        logs=logs[1:],
    )


def _censored_interval(logs: Array) -> tuple[float, float] | None:
    """Of M, from copies of log M of which some are infinite."""
    if not len(logs):
        return None
    inside = logs[np.isfinite(logs)]
    ends = interval(inside) or (-np.inf, np.inf)
    low = 0.0 if np.isneginf(logs).mean() > MOST_CENSORED else math.exp(ends[0])
    high = np.inf if np.isposinf(logs).mean() > MOST_CENSORED else math.exp(ends[1])
    return low, high


def along(model: Estimate, control: Estimate, axis: str, kind: str) -> list[Multiplier]:
    """At each rung of the model, at half of its largest budget, in FLOPs or seconds.

    Args: kind: surface or hull, of both.
    """
    mine, theirs = model.frontier(axis, kind), control.frontier(axis, kind)
    return [
        multiplier(rung, mine, theirs, math.log(_middle_cost(model, axis, rung)))
        for rung in model.scores.rungs
    ]


def in_text(model: Estimate, control: Estimate) -> list[Multiplier]:
    """At each rung that both have: the bytes of text that the control needs at that rung."""
    found = []
    for rung in model.scores.rungs:
        if rung in control.scores.rungs:
            mine = frontier.of_budgets(model.surface, model.scores, rung)
            theirs = frontier.of_budgets(control.surface, control.scores, rung)
            found.append(
                multiplier(rung, mine, theirs, math.log(_middle_cost(model, "bytes", rung)))
            )
    return found


def in_weights(model: Estimate, control: Estimate) -> list[Multiplier]:
    """At each rung: the weights per token that the control needs after the same text."""
    found = []
    for rung in model.scores.rungs:
        num_bytes = _middle_cost(model, "bytes", rung)
        mine = frontier.of_sizes(model.surface, model.scores, num_bytes)
        theirs = frontier.of_sizes(control.surface, control.scores, num_bytes)
        found.append(multiplier(rung, mine, theirs, math.log(model.scores.size(rung))))
    return found


def _middle_cost(model: Estimate, axis: str, rung: str) -> float:
    """Of half the largest budget of a rung."""
    scores = model.scores
    largest = max(budget for one, budget in scores.cells if one == rung and budget <= 1)
    tokens = max(scores.tokens[at] for at in scores.of(rung) if scores.budget[at] == largest)
    return float(scores.per_token(axis, rung) * tokens * MIDDLE / largest)


def trend(found: Sequence[Multiplier]) -> Trend | None:
    """The weighted regression of log M on log cost over the rungs that have a number; None where
    they are fewer than three. Its interval is that of the copies, whose rungs share trunks and the
    control, and not of the residuals."""
    defined = [one for one in found if one.value is not None]
    if len(defined) < MIN_TREND:
        return None
    costs = np.log([one.cost for one in defined])
    values = np.log([[one.value or math.nan for one in defined]])  # (1, rungs)
    copies = np.stack([one.logs for one in defined], 1)  # (copies, rungs)
    copies = copies[np.isfinite(copies).all(1)]
    weights = np.ones(len(costs))
    if len(copies) > 1 and (copies.var(0) > 0).all():
        weights = 1 / copies.var(0)
    slopes = _slopes(costs, copies, weights)
    without = None
    if len(defined) > MIN_TREND:
        without = float(_slopes(costs[1:], values[:, 1:], weights[1:])[0])
    p = None
    if len(slopes):
        beyond = min((slopes >= 0).mean(), (slopes <= 0).mean())
        p = float(min(1.0, 2 * max(beyond, 1 / (1 + len(slopes)))))
    return Trend(float(_slopes(costs, values, weights)[0]), interval(slopes), p, without)


def _slopes(costs: Array, values: Array, weights: Array) -> Array:
    """(C,) of the weighted lines through values (C, rungs)."""
    share = weights / weights.sum()
    away = costs - share @ costs
    return np.asarray((values * share) @ away / (share @ away**2))


def holm(ps: Mapping[str, float]) -> dict[str, bool]:
    """Which of several tests are significant together at 5 percent (Holm 1979)."""
    found = dict.fromkeys(ps, False)
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        if ps[name] > LEVEL / (len(ps) - rank):
            break
        found[name] = True
    return found
