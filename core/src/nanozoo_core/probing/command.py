"""`nanozoo probe`, from its arguments to its matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.files import claim_output
from nanozoo_core.machine.terminal import say
from nanozoo_core.probing import report
from nanozoo_core.probing.execute import run_members
from nanozoo_core.probing.request import parse
from nanozoo_core.probing.results import Cell, collect


@dataclass(frozen=True)
class Probe:
    """What a probe came to."""

    folder: Path
    cells: tuple[Cell, ...]
    failures: dict[str, str]
    """A sentence for each training that failed, and for each model that reads the future."""
    text: str
    """The matrix."""

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model and task, of what `pandas.DataFrame` takes."""
        return [
            {
                "model": cell.label,
                "task": cell.task,
                "score": cell.score,
                "normalised": cell.normalised,
                **{key: cell.mean(key) if cell.chosen else None for key in ("chance", "guess")},
                "is_learned": cell.is_learned,
                "problem": cell.problem,
            }
            for cell in self.cells
        ]

    def __str__(self) -> str:
        return f"{self.text}\n\nthe report: {self.folder / 'report.md'}"


def probe(words: Sequence[str], *, is_long: bool = False, force: bool = False) -> Probe:
    """Trains what the words of a command ask for and is not there yet, and draws the matrix.

    Raises: ConfigError, CheckpointError before anything runs; Interrupted. A training that fails is
        told in what is returned.
    """
    request = parse(words, is_long=is_long)
    claim_output(request.folder, "nanozoo probe", report.FILES, setting="folder", force=force)
    for warning in report.warnings(request):
        say(warning)
    failures = run_members(
        request.folder, list(request.members), jobs=request.jobs, command=request.command
    )
    cells = collect(request, failures)
    if any(cell.chosen for cell in cells):
        report.write(request, cells)
    leaks = {f"{c.label}, {c.task}": c.problem for c in cells if c.chosen and c.problem}
    return Probe(request.folder, tuple(cells), failures | leaks, report.describe(request, cells))
