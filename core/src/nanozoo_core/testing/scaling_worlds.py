"""Ladders of scores that a known law has made, for tests of `nanozoo scale`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nanozoo_core.comparing.scale.scores import Scores

SIZES = np.array([163_840.0, 430_080.0, 1_114_112.0, 2_007_040.0])
FLOPS = np.array([1.376e6, 3.465e6, 8.651e6, 1.499e7])  # of a token
TOKENS = np.array([3.3e6, 8.6e6, 22.3e6, 20.1e6])  # of the whole budget
BUDGETS = (1 / 8, 1 / 4, 1 / 2, 1.0)
E, ALPHA, BETA = 0.8, 0.35, 0.37
A, B = 0.6 * 163_840**ALPHA, 0.8 * 3e6**BETA

Law = Callable[[float, float], float]


def law(n: float, d: float) -> float:
    """Bits per byte of n weights after d tokens."""
    return float(E + A * n**-ALPHA + B * d**-BETA)


def interacting(n: float, d: float) -> float:
    """A law that no sum of two powers is."""
    return float(E + 0.9 * (A * n**-ALPHA + B * d**-BETA) ** 0.42)


def ladder(
    name: str,
    generator: np.random.Generator,
    *,
    of: Law = law,
    shift: Sequence[float] = (1.0,) * 4,
    cheaper: Sequence[float] = (1.0,) * 4,
    trunk: float = 0.004,
    branch: float = 0.002,
    seeds: int = 2,
    longer: bool = False,
) -> Scores:
    """Four rungs with four budgets each.

    Args:
        shift: by which each rung's weights and tokens seem to be multiplied.
        cheaper: by which each rung's FLOPs are divided.
        trunk, branch: standard deviations of log L of a rung's seed and of each of its budgets.
        longer: with the two budgets more that a control has.
    """
    rows = []
    for rung, (n, flops, most) in enumerate(zip(SIZES, FLOPS, TOKENS, strict=True)):
        budgets = [*BUDGETS]
        if longer:
            budgets = [1 / 16, *budgets] if rung == 0 else budgets
            budgets = [*budgets, 2.0] if rung == len(SIZES) - 1 else budgets
        for seed in range(seeds):
            luck = generator.standard_normal() * trunk
            for budget in budgets:
                d = most * budget
                away = luck + generator.standard_normal() * branch
                loss = of(n * shift[rung], d * shift[rung]) * np.exp(away)
                rows.append((f"r{rung}", budget, seed, n, d, flops * d / cheaper[rung], loss))
    rungs, shares, seeds_of, n, d, flops, loss = zip(*rows, strict=True)
    tokens = np.array(d)
    return Scores(
        model=name,
        rung=rungs,
        budget=shares,
        seed=seeds_of,
        n=np.array(n),
        tokens=tokens,
        unique=1e9,
        flops=np.array(flops),
        seconds=np.array(flops) / 1e11,
        bytes=2.73 * tokens,
        loss=np.array(loss),
        branched=True,
    )
