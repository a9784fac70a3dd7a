"""Equal tuning: every entrant tries the same multiples of its own learning rates with the first
seed, and the best of them trains all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanozoo_core.comparing.compare.request import Request
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.comparing.entrants import Entrant

EVERYWHERE = ("lr", "adamw.embedding_lr", "adamw.head_lr", "adamw.vector_lr")


@dataclass(frozen=True)
class Tuning:
    """An entrant at each factor, and what the first seed reached there."""

    label: str
    at_factor: dict[float, Entrant]
    bpbs: dict[float, float]
    """Without the factors at which it failed."""

    @property
    def best(self) -> Entrant:
        return self.at_factor[best(self.bpbs)]


def best(bpbs: dict[float, float]) -> float:
    """The factor of the fewest bits per byte."""
    return min(bpbs, key=lambda factor: bpbs[factor])


def at_factors(request: Request, entrant: Entrant) -> dict[float, Entrant]:
    """The entrant with all rates that its optimiser uses multiplied by each factor, under labels
    that no user can give. Raises: ConfigError for settings that do not fit."""
    optim = request.resolve(entrant).training.optim
    rates = {}
    for key in (*EVERYWHERE, "muon.lr") if optim.name == "muon" else EVERYWHERE:
        section, _, name = key.rpartition(".")
        rate = getattr(getattr(optim, section) if section else optim, name)
        if rate is not None:
            rates[key] = rate
    found = {}
    for factor in request.rate_factors:
        scaled = [f"optim.{key}={rate * factor:.6g}" for key, rate in rates.items()]
        label = f"{entrant.label}.x{factor:g}"
        found[factor] = replace(entrant, label=label, overrides=(*entrant.overrides, *scaled))
    return found


def first_tries(request: Request) -> list[Tuning]:
    """Every entrant at every factor, nothing of it trained."""
    return [Tuning(e.label, at_factors(request, e), {}) for e in request.entrants]


def with_scores(tries: Sequence[Tuning], tried: Sequence[Entry]) -> list[Tuning]:
    """The tries with the scores of what was trained; no entrant that failed at every factor."""
    means = {entry.label: entry.mean for entry in tried}
    found = []
    for one in tries:
        bpbs = {f: means[e.label] for f, e in one.at_factor.items() if e.label in means}
        if bpbs:
            found.append(replace(one, bpbs=bpbs))
    return found


def relabelled(entries: Sequence[Entry], tunings: Sequence[Tuning]) -> list[Entry]:
    """The entries at their best factors under the labels that the user gave, with what was tried;
    other entries as they are."""
    by_label = {tuning.best.label: tuning for tuning in tunings}
    renamed = []
    for entry in entries:
        tuning = by_label.get(entry.label)
        if tuning is not None:
            runs = tuple(replace(run, label=tuning.label) for run in entry.runs)
            entry = Entry(tuning.label, runs, tried=tuning.bpbs)
        renamed.append(entry)
    return renamed
