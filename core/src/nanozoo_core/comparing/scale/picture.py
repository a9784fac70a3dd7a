"""The one picture of a ladder: score over FLOPs, and each model's frontier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanozoo_core.comparing.compare.palette import HUES, colour_of
from nanozoo_core.comparing.scale.estimate import INTERVAL, Estimate
from nanozoo_core.files import whole_file

BAND = 0.15  # of the interval's colour


def write_picture(path: Path, estimates: Sequence[Estimate]) -> None:
    """Raises: WriteError."""
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the user

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(estimates):
        lap, place = divmod(number, len(HUES))
        _draw(axes, one, colour_of(((HUES[place] + 22.5 * lap) % 360) / 360))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.set_xlabel("FLOPs of training")
    axes.set_ylabel("bits per byte of validation text (lower is better)")
    axes.set_title("Dots: decayed ends of runs. Lines: frontiers, with their 95 percent intervals.",
                   fontsize=10)  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw(axes: Any, one: Estimate, colour: str) -> None:
    edge = one.frontier("flops", "surface" if one.lack is None else "hull")
    cost = np.exp(edge.log_cost)
    axes.plot(cost, np.exp(edge.log_loss[0]), color=colour, label=one.scores.model)
    if len(edge.log_loss) > 1:
        low, high = np.percentile(edge.log_loss[1:], INTERVAL, axis=0)
        axes.fill_between(cost, np.exp(low), np.exp(high), color=colour, alpha=BAND, linewidth=0)
    marker = "<" if one.scores.is_bound else "o"
    axes.plot(one.scores.flops, one.scores.loss, marker, color=colour, markersize=3.5, alpha=0.7)
