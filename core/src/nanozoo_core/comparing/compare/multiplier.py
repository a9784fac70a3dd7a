"""The compute multiplier of a comparison: how much compute the control needs for a model's score.

The control trains on other budgets too, each a training of its own with its whole schedule, and the
line through their scores, in logarithms, says what a score costs. `nanozoo scale` asks the same at
several sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from nanozoo_core.comparing.compare.ranking import degrees_of_freedom, pooled_variance, quantile
from nanozoo_core.comparing.compare.request import COUNTED, Request
from nanozoo_core.comparing.compare.results import Entry, Multiplier
from nanozoo_core.comparing.entrants import Entrant


def at_budgets(request: Request) -> tuple[Entrant, ...]:
    """The control at each of its other budgets, under labels that no user can give."""
    if request.control is None or request.budget is None:
        return ()
    unit, amount = request.budget
    (control,) = (e for e in request.entrants if e.label == request.control)
    return tuple(
        replace(
            control,
            label=f"{control.label}.b{factor:g}",
            overrides=(*control.overrides, f"train.max_{unit}={_whole(unit, factor * amount)}"),
        )
        for factor in request.control_budgets
    )


def _whole(unit: str, amount: float) -> float:
    return round(amount) if unit in COUNTED else amount


def multiplied(
    request: Request, entries: Sequence[Entry]
) -> tuple[list[Entry], tuple[Entry, ...], str | None]:
    """The entries with their multipliers, and without those of the control at other budgets; the
    control at all its budgets, from the least compute; and why there are no multipliers, where
    that is so."""
    if request.control is None:
        return list(entries), (), None
    labels = {entrant.label for entrant in at_budgets(request)}
    others = [entry for entry in entries if entry.label in labels]
    main = [entry for entry in entries if entry.label not in labels]
    at_own = [entry for entry in main if entry.label == request.control]
    curve = tuple(sorted((*at_own, *others), key=_flops))
    if not at_own or len(curve) < 2:
        why = f"No compute multipliers: {request.control} has no scores at two budgets."
        return main, curve, why
    alike = [entry for entry in entries if entry.is_bound == curve[0].is_bound]
    spread = pooled_variance(alike) if degrees_of_freedom(alike) else None
    student = quantile(alike) if spread is not None else 0.0
    found = []
    for entry in main:
        one = None
        if entry.label == request.control:
            one = Multiplier(1.0)
        elif entry.text == curve[0].text and entry.median("train_flops"):
            one = multiplier(entry, curve, spread, student)
        found.append(replace(entry, multiplier=one))
    return found, curve, None


def multiplier(
    entry: Entry, curve: Sequence[Entry], variance: float | None, student: float
) -> Multiplier | None:
    """Of one entry against the control at several budgets, from the cheapest.

    A dearer budget with a worse score counts as the cheaper one: nobody would pay for it. The error
    of the logarithm is that of the two scores over the slope of the line between the budgets.

    Args: variance: of a score between seeds; None leaves out the interval. student: the
        quantile for it.
    Returns: None for a score of which nothing can be said: an upper bound worse than all budgets.
    """
    costs = [math.log(_flops(one)) for one in curve]
    scores = [math.log(one.mean) for one in curve]
    for n in range(1, len(scores)):
        scores[n] = min(scores[n], scores[n - 1])
    own, wanted = math.log(_flops(entry)), math.log(entry.mean)
    may_be_better = entry.is_bound and not curve[0].is_bound
    if wanted < scores[-1]:
        return Multiplier(math.exp(costs[-1] - own), ">")
    if wanted > scores[0]:
        return None if may_be_better else Multiplier(math.exp(costs[0] - own), "<")
    right = next(n for n, score in enumerate(scores) if score <= wanted)
    left = max(right - 1, 0)
    drop = scores[left] - scores[right]
    share = (scores[left] - wanted) / drop if drop else 0.0
    log_value = costs[left] + share * (costs[right] - costs[left]) - own
    if may_be_better:
        return Multiplier(math.exp(log_value), ">=")
    if variance is None or not drop:
        return Multiplier(math.exp(log_value))
    seeds = ((1 - share) ** 2 / len(curve[left].runs), share**2 / len(curve[right].runs))
    error = (variance * (1 / len(entry.runs) + sum(seeds))) ** 0.5 / entry.mean
    margin = student * error * (costs[right] - costs[left]) / drop
    interval = math.exp(log_value - margin), math.exp(log_value + margin)
    return Multiplier(math.exp(log_value), interval=interval)


def _flops(entry: Entry) -> float:
    """Of training; not a number where a run of an older version does not say."""
    return entry.median("train_flops") or math.nan
