"""What a probe found: result.json, report.md, and the matrix of models and tasks as text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nanozoo_core.comparing.compare.tables import markdown_rows
from nanozoo_core.files import write_json, write_text
from nanozoo_core.machine.terminal import text_table
from nanozoo_core.probing.matrix import write_matrix
from nanozoo_core.probing.request import Request
from nanozoo_core.probing.results import Cell
from nanozoo_core.probing.task import Task
from nanozoo_core.training import records

FILES = ("result.json", "report.md", "matrix.png")


def write(request: Request, cells: Sequence[Cell]) -> None:
    """Writes the files. Raises: WriteError."""
    about = {
        "command": request.command,
        "date": time.strftime("%Y-%m-%d"),
        "git_commit": records.git_commit(),
        "tasks": [about_task(task) for task in request.tasks],
        "cells": [_row(cell) for cell in cells],
    }
    write_json(request.folder / "result.json", about)
    write_text(request.folder / "report.md", markdown(request, cells))
    write_matrix(request.folder / "matrix.png", request, cells)


def about_task(task: Task) -> dict[str, Any]:
    """What is said of a task in result.json."""
    return {
        "name": task.name,
        "number": task.number,
        "headline": task.headline,
        "guess": task.guess_name,
        "is_quick": task.is_quick,
        "knobs": asdict(task),  # type: ignore[call-overload]
    }


def _row(cell: Cell) -> dict[str, Any]:
    return {
        "label": cell.label,
        "task": cell.task,
        "score": cell.score,
        "normalised": cell.normalised,
        "is_learned": cell.is_learned,
        "problem": cell.problem,
        "seeds": list(cell.chosen),
        "tried": [asdict(one) for one in cell.tried],
    }


def warnings(request: Request) -> list[str]:
    """What the reader must know before the numbers: tasks that take longer than a quick probe."""
    slow = [task.name for task in request.tasks if not task.is_quick]
    if request.is_long or not slow:
        return []
    return [
        f"{', '.join(slow)}: no model learns {'these' if len(slow) > 1 else 'this'} in a quick "
        "probe, whose scores are those of the guess; --long gives each training 15 minutes"
    ]


def table(request: Request, cells: Sequence[Cell]) -> list[list[str]]:
    """The matrix: a row for each model, a column for each task, with the guess and chance above,
    the control next, and the others below."""
    order = request.rows
    by_place = {(cell.label, cell.task): cell for cell in cells}
    lines = [["model", *(task.name for task in request.tasks)]]
    for name in ("chance", "guess"):
        lines.append([name, *(_over_models(cells, task.name, name) for task in request.tasks)])
    for label in order:
        shown = f"{label} (control)" if label == request.control else label
        lines.append([shown, *(text_of(by_place[label, task.name]) for task in request.tasks)])
    return lines


def _over_models(cells: Sequence[Cell], task: str, key: str) -> str:
    found = [cell.mean(key) for cell in cells if cell.task == task and cell.chosen]
    return f"{sum(found) / len(found):.3f}" if found else ""


def text_of(cell: Cell) -> str:
    """A score with * where it is above the guess; `leaks` or `n/a` where there is none."""
    if cell.score is None:
        return "leaks" if cell.chosen else "n/a"
    return f"{cell.score:.3f}{'*' if cell.is_learned else ' '}"


def describe(request: Request, cells: Sequence[Cell]) -> str:
    """For the terminal."""
    parts = [text_table(table(request, cells), left=[0])]
    parts += ["* is above the guess by three standard errors; another score says that the task was "
              "not learned in this budget, not that it cannot be"]  # fmt: skip
    parts += warnings(request)
    parts += [f"{cell.label}, {cell.task}: {cell.problem}" for cell in cells if cell.problem]
    return "\n\n".join(parts)


# -- the page -----------------------------------------------------------------------------------


def markdown(request: Request, cells: Sequence[Cell]) -> str:
    """The report: the matrix, and for each task what stands behind its column."""
    parts = ["# Probe", f"`{request.command}`", "![models and tasks](matrix.png)"]
    parts += [_markdown_table(table(request, cells)), *warnings(request)]
    parts += [f"- {cell.label}, {cell.task}: {cell.problem}" for cell in cells if cell.problem]
    for task in request.tasks:
        mine = [cell for cell in cells if cell.task == task.name and cell.chosen]
        if mine:
            parts += _section(task, mine)
    return "\n\n".join(parts) + "\n"


def _section(task: Task, cells: Sequence[Cell]) -> list[str]:
    first = cells[0].chosen[0]
    knobs = ", ".join(f"{key} {value}" for key, value in first["knobs"].items())
    chance, guess = cells[0].mean("chance"), cells[0].mean("guess")
    intro = (
        f"{knobs}; headline: {task.headline}. Chance {chance:.3f}; guess ({task.guess_name}) "
        f"{guess:.3f}. Training scores {first['settings']['loss']}."
    )
    lines = [["model", "score", "normalised", "asked", "rate", "steps", "tokens", "seconds",
              "weights", "state numbers", *_columns(cells)]]  # fmt: skip
    for cell in cells:
        row = cell.chosen[0]
        lines.append(
            [
                cell.label,
                f"{cell.mean('score'):.3f} ± {cell.mean('standard_error'):.3f}",
                "" if cell.normalised is None else f"{cell.normalised:.3f}",
                row["mode"],
                ", ".join(f"{seed['settings']['lr']:g}" for seed in cell.chosen),
                *(f"{cell.mean(key):,.0f}" for key in ("steps", "tokens", "seconds")),
                f"{row['weights_without_embeddings']:,.0f}",
                "n/a" if row["state_numbers"] is None else f"{row['state_numbers']:,.0f}",
                *(_answer(cell, column) for column in _columns(cells)),
            ]
        )
    return [f"## {task.name}", intro, _markdown_table(lines)]


def _columns(cells: Sequence[Cell]) -> list[str]:
    """Other ways to ask, other lengths, and the groups of the headline's way."""
    found: dict[str, None] = {}
    for cell in cells:
        row = cell.chosen[0]
        found |= dict.fromkeys(f"{name}" for name in list(row["modes"])[1:])
        found |= dict.fromkeys(row["beyond"])
        own = row["modes"][row["mode"]]
        found |= dict.fromkeys(f"{own['group_name']} {group}" for group in own["by_group"])
    return list(found)


def _answer(cell: Cell, column: str) -> str:
    """The first seed's score in a column."""
    row = cell.chosen[0]
    own = row["modes"][row["mode"]]
    asked = (row["modes"] | row["beyond"]).get(column)
    if asked is not None:
        return "n/a" if "not_asked" in asked else f"{asked[row['headline']]:.3f}"
    group = column.removeprefix(f"{own['group_name']} ")
    return f"{own['by_group'][group]:.3f}" if group in own["by_group"] else ""


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return markdown_rows(*[[cell.strip() for cell in line] for line in lines])
