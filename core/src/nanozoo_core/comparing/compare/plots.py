"""The plots of a comparison as PNG files: ranking.png and curves.png."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.curves import AXES, baselines, curve
from nanozoo_core.comparing.compare.ranking import Group
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.files import whole_file

AXIS_LABELS = {
    "bytes": ("training text read (MB)", 1e6),
    "flops": ("training FLOPs (T)", 1e12),
    "seconds": ("training time (s)", 1.0),
}


def colours(count: int) -> list[str]:
    """Well-spread colours, readable on light and dark pages."""
    found = []
    for n in range(count):
        lightness = (0.42, 0.56)[n % 2]
        r, g, b = colorsys.hls_to_rgb(n / count, lightness, 0.62)
        found.append(f"#{round(255 * r):02x}{round(255 * g):02x}{round(255 * b):02x}")
    return found


def write_plots(folder: Path, groups: Sequence[Group], entries: Sequence[Entry]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    paint = dict(zip((e.label for e in entries), colours(len(entries)), strict=True))
    for name, figure in (
        ("ranking", _ranking(plt, groups, entries, paint)),
        ("curves", _curves(plt, entries, paint)),
    ):
        with whole_file(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=120)
        plt.close(figure)


def _ranking(
    plt: Any, groups: Sequence[Group], entries: Sequence[Entry], paint: dict[str, str]
) -> Any:
    """Means with their intervals, the seeds as dots, bounds with a mark that points left."""
    lines = [place for group in groups for place in group.places]
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.3 * len(lines)), layout="constrained")
    for height, place in enumerate(reversed(lines)):
        entry = place.entry
        marker = "<" if entry.is_bound else "o"
        axes.plot(entry.bpbs, [height] * len(entry.bpbs), ".", color=paint[entry.label], alpha=0.5)
        axes.errorbar(
            entry.mean, height, xerr=place.half_width, fmt=marker, color=paint[entry.label],
            capsize=3,
        )  # fmt: skip
    axes.set_yticks(range(len(lines)), [place.entry.label for place in reversed(lines)])
    for name, bpb in baselines(entries).items():
        axes.axvline(bpb, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(name, (bpb, 1), xycoords=("data", "axes fraction"), color="grey",
                      fontsize=8, ha="center", va="bottom")  # fmt: skip
    axes.set_xlabel("validation bits per byte (left is better; < marks an upper bound)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _curves(plt: Any, entries: Sequence[Entry], paint: dict[str, str]) -> Any:
    figure, panels = plt.subplots(1, 3, figsize=(14, 5.5), sharey=True, layout="constrained")
    values: list[float] = []
    for entry in entries:
        train, val = curve(entry, "train_bpb"), curve(entry, "val_bpb")
        style = {"color": paint[entry.label], "linestyle": "--" if entry.is_bound else "-"}
        for axis, axes in zip(AXES, panels, strict=True):
            unit = AXIS_LABELS[axis][1]
            xs = [getattr(point, axis) / unit for point in train]
            axes.plot(xs, [p.bpb for p in train], linewidth=1, alpha=0.6, **style)
            dots = [getattr(point, axis) / unit for point in val]
            axes.plot(dots, [p.bpb for p in val], "o", markersize=4, color=paint[entry.label],
                      label=entry.label)  # fmt: skip
        values += [p.bpb for p in (*train[1:], *val)]
    for axis, axes in zip(AXES, panels, strict=True):
        axes.set_xlabel(AXIS_LABELS[axis][0])
        for name, bpb in baselines(entries).items():
            axes.axhline(bpb, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(name, (0, bpb), xycoords=("axes fraction", "data"), color="grey",
                          fontsize=8, va="bottom")  # fmt: skip
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("bits per byte: lines training, dots validation")
    if values:  # without the first steps, beside which what follows would be flat
        panels[0].set_ylim(0.97 * min(values), min(1.02 * max(values), 2.2 * min(values)))
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, frameon=False
    )
    return figure
