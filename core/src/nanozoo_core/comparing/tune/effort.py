"""What a search of n trials may expect to find, from the scores of random trials.

Scores are bits per byte, of which fewer are better.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

COPIES = 1000
LEVEL = 0.95


def expected_best(scores: Sequence[float], n: int) -> float:
    """E_n: the mean of the lowest of n scores that are drawn with replacement. It errs towards
    worse scores.

    Source: Dodge et al. 2019, arXiv 1909.03004.
    """
    ordered = sorted(scores, reverse=True)
    total = len(ordered)
    return sum(
        value * ((i / total) ** n - ((i - 1) / total) ** n) for i, value in enumerate(ordered, 1)
    )


def unbiased_best(scores: Sequence[float], n: int) -> float:
    """U_n: the mean of the lowest over all sets of n of the scores, without bias for the lowest of
    n independent ones. n is at most their number.

    Source: Tang et al. 2020, arXiv 2004.13705.
    """
    ordered = sorted(scores, reverse=True)
    total = len(ordered)
    assert 1 <= n <= total
    sets = math.comb(total, n)
    return sum(
        value * math.comb(i - 1, n - 1) / sets for i, value in enumerate(ordered, 1) if i >= n
    )


def best_interval(scores: Sequence[float], n: int) -> tuple[float, float] | None:
    """The 95 percent interval of U_n over fresh sets of scores, by drawing from these ones; None
    where n is more than a quarter of them: there the ends of such an interval are poor."""
    if n > len(scores) // 4:
        return None
    generator = random.Random(0)
    found = sorted(
        unbiased_best(generator.choices(scores, k=len(scores)), n) for _ in range(COPIES)
    )
    outside = round(COPIES * (1 - LEVEL) / 2)
    return found[outside], found[-1 - outside]


def agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau: the pairs in the same order minus those in the other, over all pairs that
    differ in both; 1 where there is none."""
    signs = [(one[i] - one[j]) * (other[i] - other[j]) for i in range(len(one)) for j in range(i)]
    differing = [sign for sign in signs if sign]
    return sum(math.copysign(1, sign) for sign in differing) / len(differing) if differing else 1.0
