"""`nanozoo scale`, from its arguments to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nanozoo_core.comparing.compare.execute import Program, run_members
from nanozoo_core.comparing.compare.plan import Member, write_plan
from nanozoo_core.comparing.scale import cost, rate_check, report
from nanozoo_core.comparing.scale.collect import Collected, collect
from nanozoo_core.comparing.scale.multiplier import Multiplier
from nanozoo_core.comparing.scale.picture import write_picture
from nanozoo_core.comparing.scale.plan import (
    Cell,
    Ladder,
    Place,
    families,
    make_ladder,
    members_of,
    write_families,
)
from nanozoo_core.comparing.scale.rate_check import RateCheck
from nanozoo_core.comparing.scale.request import Request, parse
from nanozoo_core.comparing.scale.verdict import Verdict, judge
from nanozoo_core.comparing.tune.provenance import unequal
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import claim_output, write_json, write_text
from nanozoo_core.machine.terminal import say, text_table
from nanozoo_core.training.plan import describe_time

FILES = ("report.md", "report.html", "scale.json", "frontier.png", "plan.json", "families.json")
FAMILY = Program("nanozoo_core.comparing.scale.member")  # trains a trunk with its branches
BEST = 3  # models that plan=small takes to the top rung
Members = dict[tuple[Cell, int], Member]


@dataclass(frozen=True)
class Scaling:
    """What a ladder came to."""

    folder: Path
    verdict: Verdict | None
    """None where the control has no finished run, or a plan alone was asked for."""
    plan: str
    failures: dict[str, str]
    """A sentence for each run that failed, by name."""

    def __str__(self) -> str:
        """The multipliers of each model, and where the report is."""
        if self.verdict is None:
            return self.plan
        parts = []
        for one in self.verdict.against.values():
            parts.append(f"{one.label} against {self.verdict.control}")
            parts.append(text_table(report.multiplier_table(one), left=(0,)))
            is_significant = self.verdict.significant.get(one.label, False)
            sentence = report.trend_sentence(one, is_significant=is_significant)
            parts += [sentence] if sentence else []
        return "\n".join(
            [*parts, *self.verdict.notes, f"the report: {self.folder / 'report.html'}"]
        )


def scale(words: Sequence[str], *, force: bool = False) -> Scaling:
    """Trains what the words of a command ask for and is not there yet, and writes the report.

    Raises: ConfigError, CheckpointError before anything runs; Interrupted. A run that fails is
        told in what is returned, with the report of the others.
    """
    request = parse(words)
    ladder = make_ladder(request)
    rates = cost.measured_rates(request, ladder)
    plan = cost.table(request, ladder, rates)
    if request.plan_only:
        return Scaling(request.folder, None, plan, {})
    say(f"{plan}\n")
    check = None
    if request.rates == "checked":
        left = rate_check.seconds_left(request, ladder.places, rates)
        _begin(request, left + (_seconds(request, ladder, rates) if left else 0.0), force=force)
        check = rate_check.check_rates(request, ladder.places)
        ladder = replace(ladder, places=check.places)
    first, last = _phases(request, ladder)
    members = members_of(request, first, request.seeds)
    found = families(first, members, request.seeds)
    _begin(request, cost.seconds_left(found, _seconds(request, ladder, rates)), force=force)
    failures = dict(check.failures) if check is not None else {}
    failures |= _train(request, first, members, request.seeds)
    if last:
        places, seeds = _best(request, first, last, members), _fresh(request.seeds)
        more = members_of(request, places, seeds)
        failures |= _train(request, places, more, seeds)
        members |= more
        first = [*first, *places]
    scores = collect(first, members)
    verdict = None
    if request.control.label in scores.scores:
        verdict = judge(scores, request.control.label)
        effort = unequal({one.label: one.recipe for one in request.entrants})
        verdict.notes.extend([effort] if effort is not None else [])
        verdict.notes.extend(rate_check.notes(check) if check is not None else ())
        _write(request, verdict, plan, scores, check)
    return Scaling(request.folder, verdict, plan, failures)


def _phases(request: Request, ladder: Ladder) -> tuple[list[Place], list[Place]]:
    """All places; with plan=small those of the top rung of all but the control apart."""
    if request.plan == "full":
        return [*ladder.places], []
    is_late = [
        place.rung.name == request.rungs[-1] and place.label != request.control.label
        for place in ladder.places
    ]
    pairs = list(zip(ladder.places, is_late, strict=True))
    return [p for p, late in pairs if not late], [p for p, late in pairs if late]


def _best(
    request: Request, first: Sequence[Place], last: Sequence[Place], members: Members
) -> list[Place]:
    """The places at the top rung of the models with the largest multipliers below it."""
    verdict = judge(collect(first, members), request.control.label, copies=0)
    highest = {
        label: max(map(known, against.compute[-1:]), default=0.0)
        for label, against in verdict.against.items()
    }
    chosen = sorted(highest, key=lambda label: -highest[label])[:BEST]
    say(f"to the top rung go {', '.join(chosen)}, with seeds of their own since scores chose them")
    return [place for place in last if place.label in chosen]


def known(one: Multiplier) -> float:
    """A multiplier, or its bound: a score that the control never reached is no reason to stay
    behind."""
    if one.value is not None:
        return one.value
    return 0.0 if one.bound is None else one.bound[1]


def _fresh(seeds: Sequence[int]) -> tuple[int, ...]:
    """As many seeds, none of which has chosen anything."""
    return tuple(seed + max(seeds) + 1 for seed in seeds)


def _seconds(request: Request, ladder: Ladder, rates: dict[str, float]) -> float:
    """Of all runs of the ladder, one after another."""
    return cost.seconds_of(ladder.places, rates, seeds=len(request.seeds))


def _begin(request: Request, seconds: float, *, force: bool) -> None:
    """Takes the folder. Args: seconds: of what is left, one run after another.

    Raises: ConfigError for a ladder that would take longer than was agreed to, or a folder of
        something else.
    """
    left = seconds / request.jobs
    if left > 3600 * request.hours:
        raise ConfigError(
            f"what is left takes about {describe_time(left)}, more than hours={request.hours:g}; "
            f"give hours={left / 3600 * 1.2:.0f} to begin all the same, or plan=small, or fewer "
            f"rungs, seeds or models"
        )
    claim_output(request.folder, "nanozoo scale", FILES, setting="folder", force=force)


def _train(
    request: Request, places: Sequence[Place], members: Members, seeds: Sequence[int]
) -> dict[str, str]:
    """Family by family, and then each run that one of them has left out, on its own."""
    found = families(places, members, seeds)
    plan = write_families(request.folder, found)
    trunks = [one.trunk for one in found]
    run = partial(run_members, jobs=request.jobs, command=request.command)
    run(plan, trunks, program=FAMILY)
    every = [member for one in found for member in (*(m for m, _ in one.forks), one.trunk)]
    return run(write_plan(request.folder, every), every)


def _write(
    request: Request, verdict: Verdict, plan: str, found: Collected, check: RateCheck | None
) -> None:
    folder = request.folder
    stored = report.as_json(verdict) | {"command": request.command}
    if check is not None:
        stored["rates"] = rate_check.as_json(check)
    write_json(folder / "scale.json", stored)
    estimates = [*verdict.estimates.values()]
    write_picture(folder / "frontier.png", estimates, extrapolate=request.extrapolate)
    parts = report.sections(
        verdict,
        plan=plan,
        missing=found.missing,
        check=check,
        extrapolate=request.extrapolate,
    )
    command = request.command
    write_text(folder / "report.md", report.markdown(parts, command=command))
    write_text(folder / "report.html", report.page(parts, command=command, folder=folder))
