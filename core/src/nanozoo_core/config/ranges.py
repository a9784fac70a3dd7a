"""The ranges of settings, stated in their types: `lr: Annotated[float, Range(above=0)]`.

schema.py checks them. Whatever its range, a number must be finite, and an integer fit into 64 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

LARGEST_INTEGER = 2**63 - 1  # of what files, tensors and random generators hold


@dataclass(frozen=True)
class Range:
    """Bounds of a number: `least` and `most` may be reached, `above` and `below` may not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """What the value must be and is not, such as "must be positive"; None where it fits."""
        if self.above is not None and not value > self.above:
            return self._whole() or f"must be above {self.above:g}"
        if self.least is not None and not value >= self.least:
            return self._whole() or f"must be at least {self.least:g}"
        if self.most is not None and not value <= self.most:
            return self._whole() or f"must be at most {self.most:g}"
        if self.below is not None and not value < self.below:
            return self._whole() or f"must be below {self.below:g}"
        return None

    def _whole(self) -> str | None:
        """Of ranges that have a short name."""
        bounds = (self.least, self.most, self.above, self.below)
        if bounds == (None, None, 0, None):
            return "must be positive"
        if bounds == (0, None, None, None):
            return "must not be negative"
        if bounds == (None, None, 0, 1):
            return "must lie between 0 and 1"
        if bounds in ((0, 1, None, None), (0, None, None, 1)):
            return f"must be in [0, 1{']' if self.most is not None else ')'}"
        return None


def general_problem(value: float) -> str | None:
    """What every number must be, and this one is not."""
    if isinstance(value, int):
        fits = abs(value) <= LARGEST_INTEGER
        return None if fits else f"must be at most {LARGEST_INTEGER} in size"
    return None if math.isfinite(value) else "must be finite"


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Decay = Annotated[float, Range(least=0, below=1)]
"""Of an average: 0 forgets at once."""
Share = Annotated[float, Range(least=0, most=1)]
Count = Annotated[int, Range(least=1)]
Number = Annotated[int, Range(least=0)]
"""A count that may be none."""
Layers = Annotated[int, Range(most=2_000)]
"""Blocks: at most twice as many as the deepest published Transformer has."""
