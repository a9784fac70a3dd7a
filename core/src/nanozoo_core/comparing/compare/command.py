"""`nanozoo compare`, from its arguments to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare import rates, tables
from nanozoo_core.comparing.compare.board import ADDED, add_run, finished_runs, runs_of
from nanozoo_core.comparing.compare.execute import run_members
from nanozoo_core.comparing.compare.launch import launch_members
from nanozoo_core.comparing.compare.multiplier import at_budgets, multiplied
from nanozoo_core.comparing.compare.outputs import FILES, write_report
from nanozoo_core.comparing.compare.plan import make_plan, write_plan
from nanozoo_core.comparing.compare.report import Report, markdown
from nanozoo_core.comparing.compare.request import Request, parse
from nanozoo_core.comparing.compare.results import Entry, collect
from nanozoo_core.comparing.compare.width import match_widths
from nanozoo_core.comparing.tune.provenance import unequal
from nanozoo_core.comparing.units import scaled
from nanozoo_core.files import claim_output
from nanozoo_core.machine.terminal import say


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to."""

    folder: Path
    report: Report | None
    """What report.html and its companions in the folder say; None where no run is finished."""
    failures: dict[str, str]
    """A sentence for each run that failed, by name."""

    def rows(self) -> list[dict[str, Any]]:
        """A row for every model, from the best of each table, by the titles of the report's
        columns: numbers where a column has them, else texts. `pandas.DataFrame` takes it."""
        groups = [] if self.report is None else self.report.groups
        return [
            {
                column.title: column.show(place) if column.key(place) is None else column.key(place)
                for column in tables.shown_columns(groups)
            }
            | {"bound": group.is_bound}
            for group in groups
            for place in group.places
        ]

    def __str__(self) -> str:
        """The tables of the report, and where it is."""
        if self.report is None:
            return "no run is finished"
        text = markdown(self.report, links=False).split("## How it was made")[0]
        shown = [line for line in text.splitlines() if not line.startswith(("![", "# "))]
        return "\n".join(shown).strip() + f"\n\nthe report: {self.folder / 'report.html'}"


def compare(words: Sequence[str], *, add: Sequence[str] = (), force: bool = False) -> Comparison:
    """Trains what the words of a command ask for and is not there yet, and writes the report.

    Args: add: finished runs, RUN or NAME:RUN, that the folder takes in for this report and later.
    Raises: ConfigError, CheckpointError before anything runs; Interrupted. A run that fails is
        told in what is returned, with the report of the others.
    """
    request = parse(words, needs_entrants=not add)
    if add:
        _claim(request.folder, force=force)
        for text in add:
            say(f"added: {add_run(request.folder, text)}")
    whole = bool(request.entrants or request.runs)  # else the report is of what the folder holds
    request = request.with_runs(runs_of(request.folder, (ADDED,) if whole else ("runs", ADDED)))
    entries, failures = train_members(request, force=force)
    return _write(request, entries, failures)


def report(texts: Sequence[str], folder: Path, *, force: bool = False) -> Comparison:
    """Writes a report of finished runs.

    Args: texts: RUN, NAME:RUN, or a folder with runs in it. folder: of the report.
    Raises: ConfigError, CheckpointError before anything is written. A run that has diverged is told
        in what is returned, with the report of the others.
    """
    request = Request(
        entrants=(),
        folder=folder,
        budget=None,
        seeds=(),
        jobs=1,
        words=(*texts, "--folder", str(folder)),
        program="report",
    )
    request = request.with_runs(finished_runs(texts))
    entries, failures = train_members(request, force=force)
    return _write(request, entries, failures)


def _write(request: Request, entries: list[Entry], failures: dict[str, str]) -> Comparison:
    found = None
    entries, curve, untold = multiplied(request, entries)
    if entries:  # a report of nothing would take the place of one of something
        effort = unequal({one.label: one.recipe for one in request.entrants})
        notes = tuple(note for note in (effort, untold) if note is not None)
        found = Report(title(request), request.command, entries, failures, notes, curve)
        write_report(request.folder, found)
    return Comparison(request.folder, found, failures)


def _claim(folder: Path, *, force: bool) -> None:
    claim_output(folder, "nanozoo compare", FILES, setting="folder", force=force)


def train_members(request: Request, *, force: bool = False) -> tuple[list[Entry], dict[str, str]]:
    """Trains what the request asks for and is not there yet; with rate factors, each entrant at the
    best of them.

    Returns: the entries with a finished run, and a sentence for everything that failed, by name.
    Raises: ConfigError, CheckpointError before anything runs; Interrupted.
    """
    if not request.rate_factors:
        return _train(request, force=force)
    unmatched: dict[str, str] = {}
    if request.match is not None:
        entrants, unmatched = match_widths(request)
        request = replace(request, entrants=entrants, match=None)
    tries = rates.first_tries(request)
    first = tuple(entrant for one in tries for entrant in one.at_factor.values())
    tried, failures = _train(replace(request, entrants=first, seeds=request.seeds[:1]), force=force)
    tunings = rates.with_scores(tries, tried)
    for one in tunings:
        say(f"{one.label}: best at {rates.best(one.bpbs):g} times its learning rates")
    chosen = tuple(one.best for one in tunings)
    entries, failed = _train(replace(request, entrants=chosen), force=force)
    return rates.relabelled(entries, tunings), unmatched | failures | failed


def _train(request: Request, *, force: bool) -> tuple[list[Entry], dict[str, str]]:
    everyone = (*request.entrants, *at_budgets(request))
    members, failures = make_plan(replace(request, entrants=everyone))
    _claim(request.folder, force=force)
    if members:
        plan = write_plan(request.folder, members)
        if request.launcher:
            failures |= launch_members(plan, members, request.launcher)
        else:
            failures |= run_members(plan, members, jobs=request.jobs, command=request.command)
    entries, diverged = collect(members, request.runs, request.labels)
    return entries, failures | diverged


def title(request: Request) -> str:
    names = [entrant.label for entrant in request.entrants]
    shown = ", ".join(names) if len(names) <= 6 else f"{len(names)} models"
    if not names:
        return "Comparison of finished runs"
    budget = "each within its own budget"
    if request.budget is not None:
        budget = f"after {_in_words(*request.budget)} each"
    tuned = ""
    if request.rate_factors:
        tuned = f", at the best of {len(request.rate_factors)} learning rates"
    separator = ", " if request.budget is None else " "
    return f"Comparison of {shown}{separator}{budget}{tuned}"


def _in_words(unit: str, amount: float) -> str:
    """A budget as people say it."""
    if unit == "bytes":
        return f"{scaled(amount, 'B')} of text"
    names = {"tokens": "tokens", "flops": "FLOPs", "steps": "steps", "seconds": "seconds"}
    return f"{scaled(amount)} {names[unit]}"
