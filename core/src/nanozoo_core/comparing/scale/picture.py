"""The one picture of a ladder: score over FLOPs, and each model's frontier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanozoo_core.comparing.compare.palette import HUES, colour_of
from nanozoo_core.comparing.scale.estimate import INTERVAL, Estimate
from nanozoo_core.comparing.scale.frontier import Frontier
from nanozoo_core.files import whole_file

BAND = 0.15  # of the interval's colour


def write_picture(
    path: Path, estimates: Sequence[Estimate], *, extrapolate: float | None = None
) -> None:
    """Args: extrapolate: to how many times its largest compute each frontier goes on, dashed.

    Raises: WriteError.
    """
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the user

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(estimates):
        lap, place = divmod(number, len(HUES))
        colour = colour_of(((HUES[place] + 22.5 * lap) % 360) / 360)
        _draw(axes, one, colour)
        if extrapolate is not None and (further := one.beyond(extrapolate)) is not None:
            _draw_frontier(axes, further, colour, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.set_xlabel("FLOPs of training")
    axes.set_ylabel("bits per byte of validation text (lower is better)")
    title = "Dots: decayed ends of runs. Lines: frontiers, with their 95 percent intervals."
    if extrapolate is not None:
        title += " Dashed: extrapolated, no run was trained there."
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw(axes: Any, one: Estimate, colour: str) -> None:
    edge = one.frontier("flops", "surface" if one.lack is None else "hull")
    _draw_frontier(axes, edge, colour, label=one.scores.model)
    marker = "<" if one.scores.is_bound else "o"
    axes.plot(one.scores.flops, one.scores.loss, marker, color=colour, markersize=3.5, alpha=0.7)


def _draw_frontier(axes: Any, edge: Frontier, colour: str, **style: Any) -> None:
    cost = np.exp(edge.log_cost)
    axes.plot(cost, np.exp(edge.log_loss[0]), color=colour, **style)
    if len(edge.log_loss) > 1:
        low, high = np.percentile(edge.log_loss[1:], INTERVAL, axis=0)
        axes.fill_between(cost, np.exp(low), np.exp(high), color=colour, alpha=BAND, linewidth=0)
