"""Tests of goodness of fit.

N cells.
"""

from __future__ import annotations

import math

from torch import Tensor


def chi_square(counts: Tensor, law: Tensor) -> float:
    """Of counts (N,) against probabilities (N,); what has none must not have been drawn."""
    possible = law > 0
    assert float(counts[~possible].sum()) == 0
    expected = law[possible] * float(counts.sum())
    return float(((counts[possible] - expected) ** 2 / expected).sum())


def chi_square_limit(degrees: int) -> float:
    """Exceeded with probability 1e-4, by Wilson and Hilferty's cube root, which is normal."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.72 * math.sqrt(spread)) ** 3
