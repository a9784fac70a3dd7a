"""The matrix of models and tasks as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanozoo_core.files import whole_file
from nanozoo_core.probing.request import Request
from nanozoo_core.probing.results import Cell

INK, PALE, NONE = "#33302c", "#ffffff", "#d9d5cf"
DARK_FROM = 0.6  # of the way from the guess to a perfect score, from which on the text is pale


def write_matrix(path: Path, request: Request, cells: Sequence[Cell]) -> None:
    """Colour is the way from the guess (pale) to a perfect score (dark), the number the score
    itself; grey is where there is none. Raises: WriteError."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the user

    tasks = [task.name for task in request.tasks]
    labels = request.rows
    figure = Figure(
        figsize=(2.2 + 0.95 * len(tasks), 1.6 + 0.4 * len(labels)), layout="constrained"
    )
    axes = figure.subplots()
    for cell in cells:
        x, y = tasks.index(cell.task), labels.index(cell.label)
        share = min(max(cell.normalised or 0.0, 0.0), 1.0)
        colour = NONE if cell.score is None else colormaps["Blues"](0.05 + 0.85 * share)
        axes.add_patch(_square(x, y, colour))
        text = f"{cell.score:.2f}" if cell.score is not None else "leaks" if cell.chosen else "n/a"
        axes.text(x, y, text, ha="center", va="center", fontsize=9,
                  color=PALE if share > DARK_FROM else INK)  # fmt: skip
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title("score; dark is far above the guess", fontsize=10)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _square(x: int, y: int, colour: object) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white")
