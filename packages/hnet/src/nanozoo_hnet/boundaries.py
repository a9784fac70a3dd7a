"""How well the starts of chunks agree with those of words: precision, recall and F1.

Three readings of where a chunk should start: `spaces`, at a space-like byte behind one that is none
(SpaceByte, arXiv 2404.14408); `words`, at a byte that is none behind a space-like one; `either`.

Shapes: B batch, T bytes of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanozoo_hnet.routing import Routing, is_space_like

READINGS = ("spaces", "words", "either")
NUM_BYTES = 256  # ids from here on are separators and padding


@dataclass
class Counts:
    """Of one stage and reading, over all windows."""

    both: int = 0
    near: int = 0
    """Pairs no more than one byte apart, each place in one pair at most."""
    found: int = 0
    expected: int = 0
    places: int = 0

    @property
    def precision(self) -> float:
        return self.both / max(self.found, 1)

    @property
    def recall(self) -> float:
        return self.both / max(self.expected, 1)

    def f1(self, hits: float) -> float:
        return 2 * hits / max(self.found + self.expected, 1)

    @property
    def by_chance(self) -> float:
        """The F1 of as many starts at random places: 2 p r / (p + r) of the rates p and r."""
        return self.f1(self.found * self.expected / max(self.places, 1))

    def add(self, found: Tensor, expected: Tensor, counted: Tensor) -> None:
        """Args: found, expected, counted: (B, T) bool; only where `counted` is true is counted."""
        found, expected = found & counted, expected & counted
        self.both += int((found & expected).sum())
        self.found += int(found.sum())
        self.expected += int(expected.sum())
        self.places += int(counted.sum())
        for one, other in zip(found, expected, strict=True):
            self.near += _pairs(one.nonzero()[:, 0].tolist(), other.nonzero()[:, 0].tolist())


@dataclass
class Agreement:
    """Of the starts that a model draws, stage by stage, with each reading."""

    counts: dict[tuple[int, str], Counts] = field(default_factory=dict)

    def add(self, tokens: Tensor, routings: Sequence[Routing]) -> None:
        """Args: tokens: (B, T), what the stage of bytes reads. The first place of a window, which
        always starts a chunk, and separators are left out."""
        spaces = is_space_like(tokens)
        before = spaces.roll(1, dims=1)
        starts = {"spaces": spaces & ~before, "words": ~spaces & before, "either": spaces ^ before}
        counted = tokens < NUM_BYTES
        counted[:, 0] = False
        for stage, found in enumerate(byte_places(routings)):
            for reading in READINGS:
                counts = self.counts.setdefault((stage, reading), Counts())
                counts.add(found, starts[reading], counted)

    def metrics(self) -> dict[str, float]:
        """For `Inspection`."""
        found: dict[str, float] = {}
        for (stage, reading), counts in self.counts.items():
            found[f"stage{stage}_starts_per_byte"] = counts.found / max(counts.places, 1)
            name = f"stage{stage}_{reading}"
            found[f"{name}_precision"] = counts.precision
            found[f"{name}_recall"] = counts.recall
            found[f"{name}_f1"] = counts.f1(counts.both)
            found[f"{name}_f1_within_one"] = counts.f1(counts.near)
            found[f"{name}_f1_by_chance"] = counts.by_chance
        return found


def byte_places(routings: Sequence[Routing]) -> list[Tensor]:
    """(B, T) bool of each stage: where its chunks start among the bytes, though an inner stage
    counts in chunks of the one before."""
    outer = routings[0].boundaries
    found = [outer]
    for routing in routings[1:]:
        inner = torch.zeros_like(outer)
        for row, starts in enumerate(found[-1]):
            places = starts.nonzero()[:, 0]
            kept = routing.boundaries[row, : len(places)]
            inner[row, places[: len(kept)][kept]] = True
        found.append(inner)
    return found


def _pairs(found: Sequence[int], expected: Sequence[int]) -> int:
    """How many places of two rising lists make pairs at most one apart, taken from the left."""
    pairs = n = m = 0
    while n < len(found) and m < len(expected):
        if abs(found[n] - expected[m]) <= 1:
            pairs, n, m = pairs + 1, n + 1, m + 1
        elif found[n] < expected[m]:
            n += 1
        else:
            m += 1
    return pairs
