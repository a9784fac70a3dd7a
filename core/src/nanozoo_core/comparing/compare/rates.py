"""Equal tuning: every entrant tries the same multiples of its own learning rates with the first
seed, and the best of them trains the other seeds."""

from __future__ import annotations

from dataclasses import replace

from nanozoo_core.comparing.compare.request import Request
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.comparing.entrants import Entrant

EVERYWHERE = ("lr", "adamw.embedding_lr", "adamw.head_lr", "adamw.vector_lr")


def at_factor(request: Request, entrant: Entrant, factor: float) -> Entrant:
    """The entrant with all rates that its optimiser uses multiplied, under a label that no user can
    give: at another factor it is another run. Raises: ConfigError for settings that do not fit."""
    optim = request.resolve(entrant).training.optim
    keys = (*EVERYWHERE, "muon.lr") if optim.name == "muon" else EVERYWHERE
    overrides = []
    for key in keys:
        section, _, name = key.rpartition(".")
        rate = getattr(getattr(optim, section) if section else optim, name)
        if rate is not None and factor != 1:
            overrides.append(f"optim.{key}={rate * factor:.6g}")
    label = f"{entrant.label}.x{factor:g}"
    return replace(entrant, label=label, overrides=(*entrant.overrides, *overrides))


def first_tries(request: Request) -> Request:
    """Every entrant at every factor, with the first seed alone."""
    entrants = [at_factor(request, e, f) for e in request.entrants for f in request.rate_factors]
    return replace(request, entrants=tuple(entrants), seeds=request.seeds[:1])


def scores_by_factor(request: Request, tried: list[Entry]) -> dict[str, dict[float, float]]:
    """The bits per byte of the entrants' tries by label and factor, without those that failed;
    no entrant whose tries all did."""
    bpbs = {entry.label: entry.mean for entry in tried}
    found = {
        e.label: {
            f: bpbs[label]
            for f in request.rate_factors
            if (label := at_factor(request, e, f).label) in bpbs
        }
        for e in request.entrants
    }
    return {label: scores for label, scores in found.items() if scores}


def best(scores: dict[float, float]) -> float:
    """The factor of the fewest bits per byte."""
    return min(scores, key=lambda factor: scores[factor])


def at_best(request: Request, scores: dict[str, dict[float, float]]) -> Request:
    """The entrants that have scores, each at its best factor."""
    entrants = [
        at_factor(request, e, best(scores[e.label])) for e in request.entrants if e.label in scores
    ]
    return replace(request, entrants=tuple(entrants))


def relabelled(entries: list[Entry], scores: dict[str, dict[float, float]]) -> list[Entry]:
    """The entries at their best factors under the labels that the user gave, with what was tried;
    other entries as they are."""
    owners = {f"{label}.x{best(found):g}": label for label, found in scores.items()}
    renamed = []
    for entry in entries:
        label = owners.get(entry.label)
        if label is not None:
            runs = tuple(replace(run, label=label) for run in entry.runs)
            entry = Entry(label, runs, tried=scores[label])
        renamed.append(entry)
    return renamed
