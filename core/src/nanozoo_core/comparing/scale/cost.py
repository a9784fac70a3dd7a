"""What a ladder costs, said before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nanozoo_core.comparing.bench.request import Assignment
from nanozoo_core.comparing.bench.worker import Worker
from nanozoo_core.comparing.compare.plan import Member
from nanozoo_core.comparing.scale.optimum import PLACES
from nanozoo_core.comparing.scale.plan import Family, Ladder, Place
from nanozoo_core.comparing.scale.rate_check import ends_of, flops_of
from nanozoo_core.comparing.scale.rate_check import seconds_of as check_seconds
from nanozoo_core.comparing.scale.request import Request
from nanozoo_core.comparing.units import scaled
from nanozoo_core.machine.terminal import text_table
from nanozoo_core.training.plan import describe_time
from nanozoo_core.training.run_folder import RunFolder

MEASURED_SECONDS = 1.0
HEAD_WARNING = 0.5


def measured_rates(request: Request, ladder: Ladder) -> dict[str, float]:
    """FLOPs per second of the control at each rung, measured here for a second each."""
    found = {}
    for place in ladder.of(request.control.label):
        control = request.control
        words = ["dtype=float32", *request.overrides, *control.overrides, *place.size.overrides]
        first = [] if control.recipe is not None else [f"model={control.model}"]
        worker = Worker(
            Assignment(
                label=place.label,
                task="train",
                model=place.size.config.training.model,
                arguments=(*first, *words),
                recipe=control.recipe,
            )
        )
        try:
            facts = worker.facts()
            speed = worker.block(MEASURED_SECONDS).tokens_per_second
            found[place.rung.name] = speed * facts.flops_per_token
        finally:
            worker.close()
    return found


def seconds_of(places: Sequence[Place], rates: Mapping[str, float], *, seeds: int) -> float:
    """Of all runs one after another, at the control's FLOPs per second of each rung."""
    return seeds * sum(place.bill_flops / rates[place.rung.name] for place in places)


def seconds_left(families: Sequence[Family], seconds: float) -> float:
    """Of those that are not done, by their share in the steps. Args: seconds: of all of them."""
    steps = [sum(m.settings["train"]["max_steps"] for m in _runs(one)) for one in families]
    left = [n for n, one in zip(steps, families, strict=True) if not _is_done(one)]
    return seconds * sum(left) / sum(steps)


def _runs(family: Family) -> list[Member]:
    return [family.trunk, *(fork for fork, _ in family.forks)]


def _is_done(family: Family) -> bool:
    return all(RunFolder(member.folder).is_finished for member in _runs(family))


def table(request: Request, ladder: Ladder, rates: Mapping[str, float]) -> str:
    """The plan: every model at every rung with its counts, budgets and cost."""
    head = ("model", "rung", "layers", "width", "body", "N", "FLOPs/token", "head", "Muon",
            "tokens", "epochs", "C", "bill", "runs", "time")  # fmt: skip
    rows = [head]
    for place in ladder.places:
        counts, config = place.size.counts, place.size.config.model_cfg
        most = max(place.steps.values()) * place.step_tokens
        each = place.bill_flops / rates[place.rung.name]
        rows.append(
            (
                place.label,
                place.rung.name,
                str(getattr(config, "num_layers", "") or ""),
                str(getattr(config, "model_dim", "") or ""),
                f"{counts.body:,}",
                f"{counts.n:,.0f}",
                f"{counts.flops_per_token:.3e}",
                f"{counts.head_share:.0%}" if counts.head_share else "",
                f"{counts.muon / place.step_flops:.0%}" if counts.muon else "",
                scaled(most),
                f"{most / place.unique_tokens:.1f}",
                f"{max(place.steps.values()) * place.step_flops:.1e}",
                f"{place.bill_flops:.1e}",
                f"{len(place.steps)}{'' if place.branched else ' alone'}",
                describe_time(math.ceil(each)),
            )
        )
    seeds = len(request.seeds)
    total = seeds * sum(place.bill_flops for place in ladder.places)
    alone = seeds * sum(place.alone_flops for place in ladder.places)
    seconds = seconds_of(ladder.places, rates, seeds=seeds)
    checked = []
    if request.rates == "checked":
        ends = ends_of(ladder.places)
        flops, more = sum(map(flops_of, ends)), check_seconds(ladder.places, rates)
        seconds += more
        checked.append(
            f"check of the learning rates: {len(PLACES) * len(ends)} runs, {flops:.2e} FLOPs, "
            f"{describe_time(math.ceil(more))}, and a run more wherever the best is at an edge"
        )
    speeds = ", ".join(f"{rung} {scaled(rate)}FLOP/s" for rung, rate in rates.items())
    lines = [
        text_table(rows, left=(0, 1)),
        "",
        "C is what the longest run costs alone, and the bill is what all runs of a seed cost "
        "together, branches of one trunk sharing their beginning. Neither counts an optimiser: "
        "Muon's orthogonalisation comes on top, in percent of a step's FLOPs in its column.",
        f"bill: {total:.2e} FLOPs with {seeds} seeds ({alone:.2e} were every run trained alone)",
        f"speed of the control, measured now: {speeds}",
        *checked,
        f"time: {describe_time(math.ceil(seconds))} one after another at that speed, "
        f"{describe_time(math.ceil(seconds / request.jobs))} with jobs={request.jobs}; validation "
        f"not counted",
    ]
    for place in ladder.places:
        if place.size.counts.head_share > HEAD_WARNING:
            lines.append(
                f"rung {place.rung.name} of {place.label} measures its head, which has "
                f"{place.size.counts.head_share:.0%} of the FLOPs; use a smaller data.vocab_size"
            )
    span = _span(ladder, request.control.label)
    return "\n".join([*lines, *span, *ladder.dropped])


def _span(ladder: Ladder, control: str) -> list[str]:
    counts = [place.size.counts for place in ladder.of(control)]
    if len(counts) < 2:
        return []
    body, n = (np.array([getattr(one, key) for one in counts]) for key in ("body", "n"))
    return [
        f"the rungs span a factor of {body.max() / body.min():.0f} in the weights of the body and "
        f"of {n.max() / n.min():.0f} in those that multiply a token"
    ]
