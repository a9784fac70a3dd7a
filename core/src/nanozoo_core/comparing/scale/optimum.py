"""The best learning rate of a model at a rung, from scores at a few multiples of the carried one.

A place is the base-2 logarithm of such a multiple: 0 is the carried rate, 1 is twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLACES = (-1, 0, 1)  # that are tried first
PASSES = 0.5  # from the carried rate: the optimum is nearer to it than to any other place
FARTHEST = 3  # places are tried no further out: an eighth and eight times


@dataclass(frozen=True)
class Optimum:
    """What the scores at several places say."""

    place: float
    edge: int
    """-1 or 1 where the best lies beyond all that was tried on that side, and else 0."""

    @property
    def passes(self) -> bool:
        """Whether the carried rate is near enough."""
        return not self.edge and abs(self.place) <= PASSES

    @property
    def next(self) -> int | None:
        """The place that is to be tried next; None where the optimum is known, or too far out."""
        beyond = round(self.place) + self.edge
        return beyond if self.edge and abs(beyond) <= FARTHEST else None


def vertex(places: Sequence[float], scores: Sequence[float]) -> float | None:
    """The lowest place of the parabola through three points; None where it has none, as a line or
    one that opens downwards, or where a score is not finite."""
    (a, b, c), (f, g, h) = places, scores
    if not all(map(math.isfinite, scores)):
        return None
    left, right = (g - f) / (b - a), (h - g) / (c - b)
    bend = (right - left) / (c - a)
    return (a + b - left / bend) / 2 if bend > 0 else None


def optimum(scores: Mapping[int, float]) -> Optimum | None:
    """The vertex of the parabola through the lowest score and its neighbours.

    Where the lowest is the first or the last one, the parabola is that of the three points there:
    its vertex counts if it lies inside of what was tried, and else the best lies beyond. Where a
    neighbour of the lowest has diverged, no parabola knows better than the lowest.

    Args: scores: by place, at least three in a row; infinite where a run has diverged.

    Returns: None where no score is finite.
    """
    places = sorted(scores)
    lowest = min(places, key=lambda place: (scores[place], abs(place)))
    if not math.isfinite(scores[lowest]):
        return None
    at = min(max(places.index(lowest), 1), len(places) - 2)
    three = places[at - 1 : at + 2]
    found = vertex(three, [scores[place] for place in three])
    if places[0] < lowest < places[-1]:
        return Optimum(float(lowest) if found is None else found, 0)
    if found is not None and places[0] <= found <= places[-1]:
        return Optimum(found, 0)
    return Optimum(float(lowest), -1 if lowest == places[0] else 1)


def between(sizes: tuple[float, float], places: tuple[float, float], size: float) -> float:
    """The place at a size: a line over the logarithm of the size, flat beyond its ends."""
    (small, large), (first, last) = sizes, places
    if small == large:
        return first
    share = math.log(size / small) / math.log(large / small)
    return first + min(max(share, 0.0), 1.0) * (last - first)
