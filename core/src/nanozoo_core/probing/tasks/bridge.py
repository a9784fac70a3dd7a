"""Infilling with both ends known: arithmetic bridges modulo a prime.

From the left the first hole is uniform and all others follow from it; from both sides it is
determined. So the score is that of the first hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers

SLASH_ROOM = 2  # symbols that the order with the end first adds to a problem


@dataclass(frozen=True)
class Bridge(Task):
    """x_i = x_0 + i d modulo `prime`, with x_0 and x_n shown and the others asked for.

    With `suffix_first` a problem reads `x_0 / x_n / x_1 ..`, which tells a model that reads from
    left to right as much as one that sees both sides (arXiv 2207.14255).
    """

    name: ClassVar = "bridge"
    number: ClassVar = 13
    headline: ClassVar = "first"
    group_name: ClassVar = "hole"
    guess_name: ClassVar = "one more than the start"
    long_knobs: ClassVar = {}

    prime: int = 31
    num_steps: int = 12
    num_problems: int = 8
    suffix_first: int = 0

    @property
    def num_symbols(self) -> int:
        return self.prime + 2

    @property
    def size(self) -> int:
        """Symbols of a problem."""
        return self.num_steps + 1 + SLASH_ROOM * self.suffix_first

    @property
    def length(self) -> int:
        return self.num_problems * self.size

    @property
    def chance(self) -> float:
        return 1 / self.prime

    def check(self) -> list[str]:
        problems = []
        if self.prime < 3 or any(self.prime % n == 0 for n in range(2, self.prime)):
            problems.append(f"bridge.prime={self.prime} must be a prime of at least 3")
        if not 2 <= self.num_steps < self.prime:
            problems.append(
                f"bridge.num_steps={self.num_steps} must be at least 2 and less than bridge.prime="
                f"{self.prime}, modulo which it is divided by"
            )
        if self.num_problems < 1 or self.suffix_first > 1:
            problems.append(
                f"bridge.num_problems={self.num_problems} must be at least 1, and "
                f"bridge.suffix_first={self.suffix_first} must be 0 or 1"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        starts = integers(generator, self.prime, self.num_problems)
        steps = integers(generator, self.prime, self.num_problems, low=1)
        symbols: list[int] = []
        answers: list[int] = []
        for start, step in zip(starts, steps, strict=True):
            walk = [(start + n * step) % self.prime for n in range(self.num_steps + 1)]
            lead = [walk[0], self.prime, walk[-1], self.prime] if self.suffix_first else walk[:1]
            first = len(symbols) + len(lead)
            answers += range(first, first + self.num_steps - 1)
            symbols += [*lead, *walk[1:-1], *([] if self.suffix_first else walk[-1:])]
        holes = tuple(range(1, self.num_steps)) * self.num_problems
        return Sample(tuple(symbols), tuple(answers), holes)

    def guess(self, before: Sequence[int], seed: int) -> int:
        """Behind the start; what follows is not scored, and goes on as it began."""
        place = len(before) % self.size
        lead = 4 if self.suffix_first else 1
        if place == lead:
            return (before[-lead] + 1) % self.prime
        before_last = before[-2] if place > lead + 1 else before[-1 - lead]
        return (2 * before[-1] - before_last) % self.prime
