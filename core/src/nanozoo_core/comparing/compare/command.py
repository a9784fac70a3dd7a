"""`nanozoo compare`, from its arguments to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.compare.execute import run_members
from nanozoo_core.comparing.compare.launch import launch_members
from nanozoo_core.comparing.compare.plan import make_plan, write_plan
from nanozoo_core.comparing.compare.report import FILES, Report, markdown, write_report
from nanozoo_core.comparing.compare.request import Request, parse
from nanozoo_core.comparing.compare.results import Entry, collect
from nanozoo_core.files import claim_output


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
        text = markdown(self.report).split("## How it was made")[0]
        shown = [line for line in text.splitlines() if not line.startswith(("![", "# "))]
        return "\n".join(shown).strip() + f"\n\nthe report: {self.folder / 'report.html'}"


def compare_words(words: Sequence[str], *, force: bool = False) -> Comparison:
    """Trains what the words of a command ask for and is not there yet, and writes the report.

    Raises: ConfigError, CheckpointError before anything runs; Interrupted. A run that fails is
        told in what is returned, with the report of the others.
    """
    request = parse(words)
    entries, failures = train_members(request, force=force)
    report = None
    if entries:  # a report of nothing would take the place of one of something
        report = Report(title(request), request.command, entries, failures)
        write_report(request.folder, report)
    return Comparison(request.folder, report, failures)


def train_members(request: Request, *, force: bool = False) -> tuple[list[Entry], dict[str, str]]:
    """Trains what the request asks for and is not there yet.

    Returns: the entries with a finished run, and a sentence for everything that failed, by name.
    Raises: ConfigError, CheckpointError before anything runs; Interrupted.
    """
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
    return ", ".join(parts)
