"""Composition at depth k: a table of one cycle in any order, and where k steps along it lead.

One cycle and no other permutation: fixed points and short cycles would let few steps answer many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, shuffled


@dataclass(frozen=True)
class Pointer(Task):
    """All pairs `i pi(i)` of a uniform cycle over `num_names`, then questions `? k s` with the
    answer pi^k(s); the k of a sample differ, and so do the s."""

    name: ClassVar = "pointer"
    number: ClassVar = 17
    group_name: ClassVar = "steps"
    guess_name: ClassVar = "a name other than the start"
    is_quick: ClassVar = False
    long_knobs: ClassVar = {"num_names": 16, "most_steps": 8}

    num_names: int = 8
    most_steps: int = 4
    num_queries: int = 4

    @property
    def num_symbols(self) -> int:
        return self.num_names + self.most_steps + 1

    @property
    def length(self) -> int:
        return 2 * self.num_names + 4 * self.num_queries

    @property
    def chance(self) -> float:
        return 1 / self.num_names

    def check(self) -> list[str]:
        if 1 <= self.num_queries <= self.most_steps < self.num_names:
            return []
        return [
            f"pointer.num_queries={self.num_queries} must be at least 1 and at most "
            f"pointer.most_steps={self.most_steps}, and that less than pointer.num_names="
            f"{self.num_names}"
        ]

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        cycle = shuffled(generator, self.num_names)
        order = shuffled(generator, self.num_names)
        steps = [1 + k for k in shuffled(generator, self.most_steps)[: self.num_queries]]
        starts = shuffled(generator, self.num_names)[: self.num_queries]
        symbols: list[int] = []
        for name in order:
            symbols += [name, self._after(cycle, name, 1)]
        question = self.num_symbols - 1
        for k, start in zip(steps, starts, strict=True):
            symbols += [question, self.num_names + k - 1, start, self._after(cycle, start, k)]
        answers = range(2 * self.num_names + 3, self.length, 4)
        return Sample(tuple(symbols), tuple(answers), tuple(steps))

    def _after(self, cycle: Sequence[int], name: int, steps: int) -> int:
        return cycle[(cycle.index(name) + steps) % self.num_names]

    def guess(self, before: Sequence[int], seed: int) -> int:
        return (before[-1] + 1) % self.num_names
