"""The check of the learning rates at the ends of each model's ladder.

Rates are carried from one width to all others by a rule. Where the rule is off at one end, the
losses there are too high, and the whole law is tilted. So half and twice the carried rates train at
the smallest and at the largest rung, for a quarter of the budget, with a seed of their own and
scored on the tuning half of the validation text. An optimum that is elsewhere is interpolated over
the rungs and takes the place of the carried rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nanozoo_core.comparing.compare.execute import is_done, run_members
from nanozoo_core.comparing.compare.plan import Member, write_plan
from nanozoo_core.comparing.scale import budgets
from nanozoo_core.comparing.scale.optimum import PLACES, Optimum, between, optimum
from nanozoo_core.comparing.scale.plan import Place, as_members
from nanozoo_core.comparing.scale.request import Request
from nanozoo_core.errors import CheckpointError, NonFiniteError
from nanozoo_core.machine.terminal import say
from nanozoo_core.training.run_folder import RunFolder

SHARE = 0.25  # of a rung's whole budget
SCORED = ("eval.split=tune", "eval.every=0", "checkpoint.keep=1")

Key = tuple[str, str]
"""Label and rung of a place."""


@dataclass(frozen=True)
class End:
    """A model at the smallest or the largest of its rungs."""

    place: Place
    scores: Mapping[int, float]
    """Bits per byte by place, infinite where the run has diverged."""
    optimum: Optimum | None
    """None where a run failed, or all have diverged."""


@dataclass(frozen=True)
class RateCheck:
    """What the check came to."""

    ends: tuple[End, ...]
    places: tuple[Place, ...]
    """All places of the ladder, with the factors of their rates."""
    failures: Mapping[str, str]


def ends_of(places: Sequence[Place]) -> list[Place]:
    """The smallest and the largest rung of each model, or its only one."""
    found = []
    for label in dict.fromkeys(place.label for place in places):
        own = sorted((p for p in places if p.label == label), key=lambda p: p.rung.body)
        found += own[:1] if len(own) == 1 else [own[0], own[-1]]
    return found


def key_of(place: Place) -> Key:
    return place.label, place.rung.name


def steps_of(place: Place) -> int:
    share, most = max(place.steps.items())
    return budgets.steps_for(most / share * SHARE, 1)


def flops_of(place: Place) -> float:
    """Of the runs at an end, if no place is tried beyond the first three."""
    return len(PLACES) * steps_of(place) * place.step_flops


def members_at(
    request: Request, ends: Sequence[Place], tried: Mapping[Key, Sequence[int]]
) -> dict[tuple[Key, int], Member]:
    """The runs at some ends. Raises: ConfigError, CheckpointError as a comparison's plan."""
    entrants = {one.label: one for one in request.entrants}
    keys: dict[str, tuple[Key, int]] = {}
    found = []
    for end in ends:
        own, steps = entrants[end.label], steps_of(end)
        more = budgets.schedule(end.size.config, steps, whole=steps, shortest=steps)
        for exponent in tried[key_of(end)]:
            factor = 2.0**exponent
            label = f"{end.label}.{end.rung.name}.rate{factor:g}"
            keys[label] = key_of(end), exponent
            rates = replace(end, factor=factor).rates
            words = (*own.overrides, *end.size.overrides, *rates, *more, *SCORED)
            found.append(replace(own, label=label, overrides=words))
    seed = 2 * max(request.seeds) + 2  # of no run that a fit is made of
    return {keys[member.label]: member for member in as_members(request, found, [seed])}


def seconds_of(places: Sequence[Place], speeds: Mapping[str, float]) -> float:
    """What the check takes, one run after another, at the control's FLOPs per second of each
    rung."""
    return sum(flops_of(end) / speeds[end.rung.name] for end in ends_of(places))


def seconds_left(request: Request, places: Sequence[Place], speeds: Mapping[str, float]) -> float:
    """What of it is not trained yet. Raises: as `members_at`."""
    ends = ends_of(places)
    members = members_at(request, ends, dict.fromkeys(map(key_of, ends), PLACES))
    total = 0.0
    for end in ends:
        missing = sum(not is_done(members[key_of(end), n]) for n in PLACES)
        total += flops_of(end) / speeds[end.rung.name] * missing / len(PLACES)
    return total


def check_rates(request: Request, places: Sequence[Place]) -> RateCheck:
    """Trains what is not there yet. Where the best of three lies at an edge, one place more is
    tried there, up to an eighth and eight times.

    Raises: ConfigError, CheckpointError before anything runs; Interrupted.
    """
    where = ends_of(places)
    tried: dict[Key, list[int]] = {key_of(end): [*PLACES] for end in where}
    failures: dict[str, str] = {}
    while True:
        members = members_at(request, where, tried)
        order = [*members.values()]
        plan = write_plan(request.folder, order)
        failures |= run_members(plan, order, jobs=request.jobs, command=request.command)
        ends = [End(end, *_read(key_of(end), tried[key_of(end)], members)) for end in where]
        more = [(end.place, end.optimum.next) for end in ends if end.optimum is not None]
        if all(exponent is None for _, exponent in more):
            break
        for end, exponent in more:
            if exponent is not None:
                say(f"{end.label} at rung {end.rung.name}: the best rate is at an edge, so that "
                    f"{2.0**exponent:g} times the carried one is tried")  # fmt: skip
                tried[key_of(end)].append(exponent)
    return RateCheck(tuple(ends), tuple(_with_factor(p, ends) for p in places), failures)


def _read(
    key: Key, exponents: Sequence[int], members: Mapping[tuple[Key, int], Member]
) -> tuple[dict[int, float], Optimum | None]:
    """The scores, and what they say."""
    scores = {}
    for exponent in sorted(exponents):
        try:
            result = RunFolder(members[key, exponent].folder).read_result()
        except NonFiniteError:
            scores[exponent] = math.inf
        except CheckpointError:  # it failed, and the command says why
            return scores, None
        else:
            scores[exponent] = float(result["val_bpb"])
    return scores, optimum(scores)


def _with_factor(place: Place, ends: Sequence[End]) -> Place:
    """With the rates that the check of its model has found: those of the rule where both ends pass,
    or where one of them says nothing."""
    own = [end for end in ends if end.place.label == place.label]
    found = [end.optimum for end in own if end.optimum is not None]
    if len(found) < len(own) or all(one.passes for one in found):
        return place
    sizes = [end.place.size.counts.n for end in own]
    best = [one.place for one in found]
    exponent = between((sizes[0], sizes[-1]), (best[0], best[-1]), place.size.counts.n)
    return replace(place, factor=2.0**exponent)


def rows(check: RateCheck) -> list[list[str]]:
    """A head, and a line for each end: the scores by factor, and what became of them."""
    exponents = sorted({exponent for end in check.ends for exponent in end.scores})
    found = [["model", "rung", *(f"x {2.0**n:g}" for n in exponents), "best", "used"]]
    used = {key_of(p): p.factor for p in check.places}
    for end in check.ends:
        cells = [_shown(end.scores[n]) if n in end.scores else "" for n in exponents]
        factor = used[key_of(end.place)]
        best = "" if end.optimum is None else f"x {2.0**end.optimum.place:.3g}{_remark(end)}"
        found.append([end.place.label, end.place.rung.name, *cells, best, f"x {factor:.3g}"])
    return found


def _shown(score: float) -> str:
    return f"{score:.4f}" if math.isfinite(score) else "diverged"


def _remark(end: End) -> str:
    if end.optimum is None or end.optimum.passes:
        return ""
    return " (edge)" if end.optimum.edge else " (moved)"


def notes(check: RateCheck) -> list[str]:
    """A sentence for each end of which the check does not say the best rate."""
    found = []
    for end in check.ends:
        where = f"{end.place.label} at rung {end.place.rung.name}"
        if end.optimum is None:
            found.append(
                f"The learning rates of {where} could not be checked, so that those of this model "
                f"are carried by the rule."
            )
        elif end.optimum.edge:
            side = "lower" if end.optimum.edge < 0 else "higher"
            found.append(
                f"The best learning rate of {where} may be {side} than all that were tried; its "
                f"ladder trains at {2.0**end.optimum.place:g} times the carried one."
            )
    return found


def as_json(check: RateCheck) -> dict[str, object]:
    """Every score, and the factor of every place."""
    return {
        "ends": [
            {
                "model": end.place.label,
                "rung": end.place.rung.name,
                "scores": {f"{2.0**n:g}": s if math.isfinite(s) else None
                           for n, s in end.scores.items()},
                "log2_of_best": None if end.optimum is None else end.optimum.place,
                "passes": end.optimum is not None and end.optimum.passes,
            }
            for end in check.ends
        ],
        "factors": [
            {"model": p.label, "rung": p.rung.name, "factor": p.factor} for p in check.places
        ],
    }  # fmt: skip
