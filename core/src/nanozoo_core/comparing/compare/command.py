"""`nanozoo compare`, from its arguments to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nanozoo_core.comparing.compare import rates
from nanozoo_core.comparing.compare.execute import run_members
from nanozoo_core.comparing.compare.launch import launch_members
from nanozoo_core.comparing.compare.plan import make_plan, write_plan
from nanozoo_core.comparing.compare.report import FILES, Report, markdown, write_report
from nanozoo_core.comparing.compare.request import Request, parse
from nanozoo_core.comparing.compare.results import Entry, collect
from nanozoo_core.comparing.compare.width import match_widths
from nanozoo_core.errors import NanozooError
from nanozoo_core.files import claim_output
from nanozoo_core.machine.terminal import say


def compare(words: Sequence[str], *, force: bool = False) -> None:
    """Trains what the request asks for and is not there yet, and writes the report.

    Raises: ConfigError, CheckpointError before anything runs; Interrupted; NanozooError at the end
        when some runs failed, the report of the others being written all the same.
    """
    request = parse(words)
    entries, failures = train_members(request, force=force)
    if entries:  # a report of nothing would take the place of one of something
        report = Report(title(request), request.command, entries, failures)
        write_report(request.folder, report)
        say("\n" + _summary(report, request.folder))
    if failures:
        raise NanozooError("\n".join(f"{name}: {text}" for name, text in failures.items()))


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
    members, failures = make_plan(request)
    claim_output(request.folder, "nanozoo compare", FILES, setting="folder", force=force)
    if members:
        plan = write_plan(request.folder, members)
        if request.launcher:
            failures |= launch_members(plan, members, request.launcher)
        else:
            failures |= run_members(plan, members, jobs=request.jobs, command=request.command)
    entries, diverged = collect(members, request.runs)
    return entries, failures | diverged


def title(request: Request) -> str:
    names = [entrant.label for entrant in request.entrants]
    shown = ", ".join(names) if len(names) <= 6 else f"{len(names)} models"
    parts = [f"Comparison of {shown}" if names else "Comparison of finished runs"]
    if names and request.budget is not None:
        unit, amount = request.budget
        parts.append(f"{amount:g} {unit} of training each")
    if request.rate_factors:
        parts.append(f"each at the best of {len(request.rate_factors)} learning rates")
    return ", ".join(parts)


def _summary(report: Report, folder: Path) -> str:
    tables = markdown(report).split("## How it was made")[0]
    shown = [line for line in tables.splitlines() if not line.startswith(("![", "# "))]
    return "\n".join(shown).strip() + f"\n\nthe report: {folder / 'report.html'}"
