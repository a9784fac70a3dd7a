"""Bits per byte along training, averaged over the seeds of an entry."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nanozoo_core.comparing.compare.results import Entry

AXES = ("bytes", "flops", "seconds")


@dataclass(frozen=True)
class Point:
    """One step: what had been spent, and the mean, lowest and highest score over the seeds."""

    step: int
    bytes: float
    flops: float
    seconds: float
    bpb: float
    low: float
    high: float


def curve(entry: Entry, key: str) -> list[Point]:
    """Points at the steps for which every seed logged a number; `key` is train_bpb or val_bpb."""
    by_step: list[dict[int, dict[str, Any]]] = [
        {row["step"]: row for row in run.rows if math.isfinite(row.get(key) or math.nan)}
        for run in entry.runs
    ]
    common = set(by_step[0]).intersection(*by_step[1:])
    points = []
    for step in sorted(common):
        rows = [rows[step] for rows in by_step]
        bpbs = [row[key] for row in rows]
        spent = {axis: statistics.mean(row[axis] for row in rows) for axis in AXES}
        points.append(
            Point(step, bpb=statistics.mean(bpbs), low=min(bpbs), high=max(bpbs), **spent)
        )
    return points


def smoothed(points: Sequence[Point]) -> list[float]:
    """The scores of a curve without the noise of single batches: their exponential mean over about
    a tenth of the points, at the start over as many as there are."""
    decay = 1 - 1 / max(2.0, len(points) / 10)
    total = weight = 0.0
    found = []
    for point in points:
        total = decay * total + (1 - decay) * point.bpb
        weight = decay * weight + (1 - decay)
        found.append(total / weight)
    return found


def baselines(entries: Sequence[Entry]) -> dict[str, float]:
    """What compressors reach on the same text; empty where the texts differ."""
    if len({entry.text for entry in entries}) > 1:
        return {}
    return dict(entries[0].first.get("baselines_bpb", {}))


def as_rows(points: Sequence[Point]) -> list[dict[str, float]]:
    """For JSON: five significant digits are more than a plot can show."""
    return [{key: float(f"{value:.5g}") for key, value in asdict(p).items()} for p in points]
