"""The plots of a comparison as PNG files: ranking.png and curves.png, for a white page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.curves import AXES, Point, baselines, curve, smoothed
from nanozoo_core.comparing.compare.labels import spread
from nanozoo_core.comparing.compare.palette import Look, looks
from nanozoo_core.comparing.compare.ranking import Group
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.files import whole_file

AXIS_LABELS = {
    "bytes": ("text read in training (MB)", 1e6),
    "flops": ("FLOPs of training (T)", 1e12),
    "seconds": ("time of training (seconds)", 1.0),
}
INK = "#33302c"
FAINT = "#6b665e"  # of rules and of what stands behind
GREY = "#8f8a81"  # of the lines that are not in colour
LABEL_POINTS = 9.0


def write_plots(folder: Path, groups: Sequence[Group]) -> None:
    import matplotlib as mpl

    entries = [place.entry for group in groups for place in group.places]
    appearance = looks(entries)
    texts = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    style: Any = dict.fromkeys(texts, INK) | {"axes.edgecolor": FAINT}
    with mpl.rc_context(style):
        for name, draw in (("ranking", _ranking), ("curves", _curves)):
            figure = draw(groups, entries, appearance)
            with whole_file(folder / f"{name}.png") as file:
                figure.savefig(file, format="png", dpi=120)


def _ranking(groups: Sequence[Group], entries: Sequence[Entry], appearance: dict[str, Look]) -> Any:
    """Means with their intervals, the seeds as dots, bounds with a mark that points left."""
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the user

    lines = [place for group in groups for place in group.places]
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for height, place in enumerate(reversed(lines)):
        entry, colour = place.entry, appearance[place.entry.label].colour
        marker = "<" if entry.is_bound else "o"
        axes.plot(entry.bpbs, [height] * len(entry.bpbs), ".", color=colour, alpha=0.5)
        axes.errorbar(entry.mean, height, xerr=place.half_width, fmt=marker, color=colour,
                      capsize=3)  # fmt: skip
    axes.set_yticks(range(len(lines)), [place.entry.label for place in reversed(lines)])
    found = baselines(entries)
    for bpb in found.values():
        axes.axvline(bpb, color=FAINT, linewidth=0.8, linestyle=":")
    figure.draw_without_rendering()  # sets the scale of the axis
    _label_side_by_side(axes, found)
    axes.set_xlabel("bits per byte of validation text (left is better; < marks an upper bound)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _label_side_by_side(axes: Any, places: dict[str, float]) -> None:
    """Names above an axis at its values, moved apart where they would touch."""
    width = axes.get_window_extent().width / axes.figure.dpi * 72  # in points
    low, high = axes.get_xlim()
    per_point = (high - low) / width
    wide = max((len(name) for name in places), default=0) * 0.6 * LABEL_POINTS + 6
    moved = spread(list(places.values()), wide * per_point)
    for (name, bpb), place in zip(places.items(), moved, strict=True):
        axes.annotate(name, (bpb, 1), xycoords=("data", "axes fraction"), color=FAINT,
                      xytext=((place - bpb) / per_point, 3), textcoords="offset points",
                      fontsize=LABEL_POINTS, ha="center", va="bottom")  # fmt: skip


def _curves(groups: Sequence[Group], entries: Sequence[Entry], appearance: dict[str, Look]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.5), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    seen = {entry.label: (curve(entry, "train_bpb"), curve(entry, "val_bpb")) for entry in entries}
    values = [p.bpb for train, val in seen.values() for p in (*train[1:], *val)]
    if values:  # without the first steps, beside which what follows would be flat
        panels[0].set_ylim(0.97 * min(values), min(1.02 * max(values), 2.2 * min(values)))
    for axis, axes in zip(AXES, panels, strict=True):
        title, unit = AXIS_LABELS[axis]
        grey_first = sorted(entries, key=lambda entry: appearance[entry.label].in_colour)
        for entry in grey_first:
            _draw(axes, *seen[entry.label], axis, unit, appearance[entry.label])
        for bpb in baselines(entries).values():
            axes.axhline(bpb, color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_xlabel(title)
        axes.set_ylabel("bits per byte", visible=axes is panels[0])
        axes.grid(alpha=0.3)
    figure.suptitle(
        "Lines: training, smoothed. Dots: validation. Grey: the other models.", fontsize=10
    )
    figure.draw_without_rendering()
    for axis, axes in zip(AXES, panels, strict=True):
        _label_ends(axes, seen, axis, AXIS_LABELS[axis][1], appearance, baselines(entries))
    return figure


def _draw(
    axes: Any, train: list[Point], val: list[Point], axis: str, unit: float, look: Look
) -> None:
    """A curve of training behind its mean, and the validations."""
    xs = [getattr(point, axis) / unit for point in train]
    dots = [getattr(point, axis) / unit for point in val]
    if not look.in_colour:
        axes.plot(xs, smoothed(train), color=GREY, linewidth=0.8, alpha=0.7)
        return
    axes.plot(xs, [point.bpb for point in train], color=look.colour, linewidth=0.6, alpha=0.25)
    strokes = [float(length) for length in look.dash.split()]
    (line,) = axes.plot(xs, smoothed(train), color=look.colour, linewidth=1.6)
    if strokes:
        line.set_dashes([length / 1.6 for length in strokes])
    axes.plot(dots, [point.bpb for point in val], "o", markersize=4, color=look.colour)


def _label_ends(
    axes: Any,
    seen: dict[str, tuple[list[Point], list[Point]]],
    axis: str,
    unit: float,
    appearance: dict[str, Look],
    compressors: dict[str, float],
) -> None:
    """The names right of the axes at the heights where the lines end, with a line to each."""
    ends: list[tuple[str, str, float, float]] = []  # name, colour, x, height
    for label, (train, val) in seen.items():
        if appearance[label].in_colour and (val or train):
            last = (val or train)[-1]
            ends.append((label, appearance[label].colour, getattr(last, axis) / unit, last.bpb))
    right = axes.get_xlim()[1]
    ends += [(name, FAINT, right, bpb) for name, bpb in compressors.items()]
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # in points
    per_point = (high - low) / height
    places = spread([bpb for *_, bpb in ends], 1.25 * LABEL_POINTS * per_point)
    for (label, colour, x, bpb), place in zip(ends, places, strict=True):
        axes.annotate(
            label, (x, bpb), xytext=(1.02, place), textcoords=("axes fraction", "data"),
            fontsize=LABEL_POINTS, va="center", color=INK, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1,
                        "shrinkB": 0},
        )  # fmt: skip
