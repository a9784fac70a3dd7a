"""What is peculiar to a model: numbers, tables and a picture of them.

The adapter supplies numbers, curves and heat maps from some validation text; nothing here knows
what they mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanozoo_core.contract import Batch, Curves, HeatMap, Inspection
from nanozoo_core.data.loader import ValidationSet
from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.files import null_if_not_finite, whole_file, write_json
from nanozoo_core.likelihood import target_bytes
from nanozoo_core.machine.terminal import text_table

INSPECTED_BYTES = 65_536
SHOWN_CHARACTERS = 120


def shown_text(documents: Sequence[bytes]) -> str:
    """The beginning of a validation document, on which a model shows what is peculiar to it."""
    document = documents[0].decode("utf-8", errors="replace") if documents else ""
    return document[:SHOWN_CHARACTERS]


@torch.no_grad()
def inspect_model(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    validation: ValidationSet,
    vocabulary: Tokenizer,
    *,
    batch_tokens: int,
    device: torch.device,
    write_to: tuple[Path, Path],
) -> Inspection | None:
    """The adapter's view of the first 64 kB of validation text; None where it has none.

    Args: write_to: files for the numbers, as JSON, and for the picture.
    """
    batches: list[Batch] = []
    num_bytes = 0
    for batch in validation.batches(max(1, batch_tokens // validation.seq_len)):
        batches.append(batch.to(device))
        num_bytes += target_bytes(batch, vocabulary)
        if num_bytes >= INSPECTED_BYTES:
            break
    was_training = model.training
    model.eval()
    found = adapter.inspect(model, batches, vocabulary)
    model.train(was_training)
    if found is not None:
        write(found, *write_to)
    return found


def describe(inspection: Inspection) -> str:
    """Numbers and curves as text; heat maps with few columns too."""
    parts = [f"{name}: {value:.4g}" for name, value in inspection.metrics.items()]
    parts += [_table(picture) for picture in inspection.pictures]
    return "\n".join(parts)


def write(inspection: Inspection, path: Path, picture: Path) -> None:
    """Writes the numbers to `path` as JSON, and a picture where there is something to plot."""
    write_json(path, null_if_not_finite(dataclasses.asdict(inspection)))
    if inspection.pictures:
        _plot(picture, inspection.pictures)


def _table(picture: Curves | HeatMap) -> str:
    if isinstance(picture, HeatMap):
        width = max(len(row) for row in picture.values)
        head = [picture.row_label, *(str(column) for column in range(width))]
        rows = [
            [str(number), *(f"{value:.4g}" for value in row)]
            for number, row in enumerate(picture.values)
        ]
        title = f"{picture.title} (columns: {picture.column_label})"
    else:
        xs = sorted({x for points in picture.series.values() for x, _ in points})
        head = [picture.x_label, *(f"{x:g}" for x in xs)]
        rows = []
        for name, points in picture.series.items():
            ys = dict(points)
            rows.append([name, *(f"{ys[x]:.4f}" if x in ys else "" for x in xs)])
        title = f"{picture.title} ({picture.y_label})"
    return f"{title}\n{text_table([head, *rows])}"


def _plot(path: Path, pictures: tuple[Curves | HeatMap, ...]) -> None:
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the user

    figure = Figure(figsize=(7, 3.6 * len(pictures)), dpi=120)
    grid = figure.subplots(len(pictures), 1, squeeze=False)
    for axes, picture in zip(grid[:, 0], pictures, strict=True):
        axes.set_title(picture.title)
        if isinstance(picture, HeatMap):
            _plot_heat_map(figure, axes, picture)
        else:
            _plot_curves(axes, picture)
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def _plot_heat_map(figure: Any, axes: Any, picture: HeatMap) -> None:
    image = axes.imshow(picture.values, aspect="auto", interpolation="nearest", cmap="viridis")
    figure.colorbar(image, ax=axes)
    axes.set_xlabel(picture.column_label)
    axes.set_ylabel(picture.row_label)
    axes.set_yticks(range(len(picture.values)))


def _plot_curves(axes: Any, picture: Curves) -> None:
    for name, points in picture.series.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    axes.grid(alpha=0.3)
    if len(picture.series) > 1:
        axes.legend()
