"""A needle in a haystack that is one to eight windows of local attention long.

Reference: arXiv 2502.11089, figure 5, which retrieves at all depths of 64 k tokens of text. A stack
of L layers of a window reaches L windows without any choice of what to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers, shuffled

NUM_FILLERS = NUM_VALUES = 32
NUM_NEEDLES = 4
NEEDLE = 3  # symbols: mark, key, value
WINDOWS = 8  # of the greatest distance
MARK = NUM_FILLERS + NUM_VALUES


@dataclass(frozen=True)
class Needle(Task):
    """`mark key value` at a uniform distance of 3 to 8 windows before the end, three such needles
    of other keys at any place, fillers elsewhere; then `mark key`, and the answer is the value."""

    name: ClassVar = "needle"
    number: ClassVar = 10
    group_name: ClassVar = "windows up to"
    guess_name: ClassVar = "the value of the last needle"
    batch_windows: ClassVar = 8
    is_quick: ClassVar = False
    long_knobs: ClassVar = {}

    window: int = 32

    @property
    def num_symbols(self) -> int:
        return MARK + 1 + NUM_NEEDLES

    @property
    def length(self) -> int:
        return WINDOWS * self.window + 2 * NEEDLE

    @property
    def chance(self) -> float:
        return 1 / NUM_VALUES

    def check(self) -> list[str]:
        if self.window >= 4:
            return []
        return [f"needle.window={self.window} must be at least 4, for four needles in eight of it"]

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        size = self.length - NEEDLE
        symbols = integers(generator, NUM_FILLERS, size)
        keys = [MARK + 1 + key for key in shuffled(generator, NUM_NEEDLES)]
        values = [NUM_FILLERS + value for value in integers(generator, NUM_VALUES, NUM_NEEDLES)]
        (distance,) = integers(generator, WINDOWS * self.window + 1, 1, low=NEEDLE)
        places = [size - distance]
        for place in shuffled(generator, size - NEEDLE + 1):
            if len(places) < NUM_NEEDLES and all(abs(place - p) >= NEEDLE for p in places):
                places.append(place)
        for place, key, value in zip(places, keys, values, strict=True):
            symbols[place : place + NEEDLE] = [MARK, key, value]
        group = next(n for n in (1, 2, 4, 8) if distance <= n * self.window)
        return Sample((*symbols, MARK, keys[0], values[0]), (self.length - 1,), (group,))

    def guess(self, before: Sequence[int], seed: int) -> int:
        return next(symbol for symbol in reversed(before) if NUM_FILLERS <= symbol < MARK)
