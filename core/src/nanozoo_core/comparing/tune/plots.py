"""The plots of a search as PNG files, for a white page: the score against each key, and against
the effort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.plots import FAINT, INK
from nanozoo_core.comparing.tune.candidates import Candidate
from nanozoo_core.comparing.tune.effort import best_interval, expected_best, unbiased_best
from nanozoo_core.comparing.tune.study import Told
from nanozoo_core.files import whole_file

COLOUR, ACCENT = "#2b6ca3", "#c0561c"
COLUMNS = 4


def write_plots(
    folder: Path,
    candidate: Candidate,
    told: Sequence[Told],
    *,
    chosen: int,
    importances: dict[str, float],
    num_random: int,
) -> None:
    """Writes search-LABEL.png and effort-LABEL.png. Raises: WriteError."""
    import matplotlib as mpl

    texts = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    style: Any = dict.fromkeys(texts, INK) | {"axes.edgecolor": FAINT}
    with mpl.rc_context(style):
        for name, figure in (
            ("search", _by_key(candidate, told, chosen, importances)),
            ("effort", _by_effort(candidate, told, num_random)),
        ):
            with whole_file(folder / f"{name}-{candidate.label}.png") as file:
                figure.savefig(file, format="png", dpi=110)


def _complete(told: Sequence[Told]) -> list[Told]:
    return [one for one in told if math.isfinite(one.score)]


def _by_key(
    candidate: Candidate, told: Sequence[Told], chosen: int, importances: dict[str, float]
) -> Any:
    """A panel for each key: dots are trials, later ones darker."""
    from matplotlib.figure import Figure

    dimensions = candidate.space.dimensions
    ended = _complete(told)
    columns = min(COLUMNS, len(dimensions))
    rows = math.ceil(len(dimensions) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, dimension in zip(panels, dimensions, strict=False):
        places = [one.point[dimension.name] for one in ended]
        scores = [one.score for one in ended]
        order = [one.number for one in ended]
        panel.scatter(places, scores, c=order, cmap="Blues", vmin=-len(told) / 2, s=22,
                      edgecolors=COLOUR, linewidths=0.5)  # fmt: skip
        for number, marker, label in ((0, "s", "committed"), (chosen, "*", "chosen")):
            for one in ended:
                if one.number == number:
                    panel.plot(one.point[dimension.name], one.score, marker, color=ACCENT,
                               markersize=9, label=label)  # fmt: skip
        if dimension.log:
            panel.set_xscale("log")
        if dimension.choices:
            panel.set_xticks(range(len(dimension.choices)), list(map(str, dimension.choices)))
        else:
            ticks = [dimension.low, dimension.at(0.5), dimension.high]
            panel.set_xticks(ticks, [dimension.show(tick) for tick in ticks])
            panel.minorticks_off()
        share = importances.get(dimension.name)
        panel.set_xlabel(dimension.name + ("" if share is None else f" (importance {share:.2f})"))
        panel.grid(alpha=0.3)
    for panel in panels[len(dimensions) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("bits per byte, tuning split")
    panels[0].legend(fontsize=8)
    return figure


def _by_effort(candidate: Candidate, told: Sequence[Told], num_random: int) -> Any:
    """The lowest score that n random trials may expect, and what this one search had found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    random = [one.outcome.score for one in told if 0 < one.number < num_random]
    scores = [score for score in random if score is not None]  # those that diverged count as such
    flops_of_one = candidate.flops
    for panel, unit, label in (
        (panels[0], 1.0, "trial-equivalents"),
        (panels[1], flops_of_one / 1e12, "FLOPs of training (T)"),
    ):
        counts = list(range(1, len(scores) + 1))
        best = [unbiased_best(scores, n) for n in counts]
        biased = [expected_best(scores, n) for n in counts]
        half = len(scores) // 2
        xs = [n * unit for n in counts]
        panel.plot(xs[:half], best[:half], color=COLOUR, label="best of n random trials (U)")
        panel.plot(xs[max(0, half - 1) :], best[max(0, half - 1) :], "--", color=COLOUR)
        ends = [found for n in counts if (found := best_interval(scores, n)) is not None]
        if ends:
            panel.fill_between(xs[: len(ends)], *zip(*ends, strict=True), color=COLOUR, alpha=0.15)
        panel.plot(xs, biased, ":", color=FAINT, label="with replacement (E)")
        panel.step(*_incumbent(candidate, told, unit), where="post", color=ACCENT,
                   label="one search")  # fmt: skip
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("bits per byte, tuning split")
    panels[0].legend(fontsize=8)
    return figure


def _incumbent(
    candidate: Candidate, told: Sequence[Told], unit: float
) -> tuple[list[float], list[float]]:
    """What had been spent, and the lowest score until then."""
    xs, ys = [], []
    spent, lowest = 0.0, math.inf
    for one in told:
        spent += one.outcome.tokens / candidate.tokens
        lowest = min(lowest, one.score)
        if math.isfinite(lowest):
            xs.append(spent * unit)
            ys.append(lowest)
    return xs, ys
