"""Paths in star graphs: the first step decides all, and only the goal tells which it is.

Reference: arXiv 2403.06963; data/graphs.py of gregorbachmann/Next-Token-Failures. Read from left to
right, every node but the first follows from the one before it, so that the loss is small without
any planning: the score is that of whole paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, shuffled


@dataclass(frozen=True)
class StarGraph(Task):
    """`a b | c e | .. / start goal = path`: `degree` arms of `num_nodes` nodes with the common
    start, their edges in uniform order; the path's nodes behind the start are asked for."""

    name: ClassVar = "star"
    number: ClassVar = 11
    headline: ClassVar = "exact"
    group_name: ClassVar = "node"
    guess_name: ClassVar = "the first arm that is listed"
    long_knobs: ClassVar = {"num_names": 50}

    num_names: int = 12
    degree: int = 2
    num_nodes: int = 5

    @property
    def num_symbols(self) -> int:
        return self.num_names + 3

    @property
    def num_edges(self) -> int:
        return self.degree * (self.num_nodes - 1)

    @property
    def length(self) -> int:
        return 3 * self.num_edges - 1 + 4 + self.num_nodes

    @property
    def chance(self) -> float:
        return 1 / self.num_names

    def check(self) -> list[str]:
        if self.degree >= 1 and self.num_nodes >= 2 and self.num_edges < self.num_names:
            return []
        return [
            f"star.num_names={self.num_names} must be more than the {self.num_edges} edges of "
            f"star.degree={self.degree} and star.num_nodes={self.num_nodes}, which must be at "
            "least 1 and 2"
        ]

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        names = shuffled(generator, self.num_names)
        order = shuffled(generator, self.num_edges)
        start, steps = names[0], self.num_nodes - 1
        arms = [
            [start, *names[1 + arm * steps : 1 + (arm + 1) * steps]] for arm in range(self.degree)
        ]
        edges = [edge for arm in arms for edge in pairwise(arm)]
        bar, slash, equals = range(self.num_names, self.num_symbols)
        symbols: list[int] = []
        for number in order:
            symbols += [*edges[number], bar]
        symbols[-1] = slash
        path = arms[0]
        symbols += [start, path[-1], equals, *path]
        answers = range(self.length - steps, self.length)
        return Sample(tuple(symbols), tuple(answers), tuple(range(1, self.num_nodes)))

    def guess(self, before: Sequence[int], seed: int) -> int:
        at = before[-1]
        edges = zip(
            before[: 3 * self.num_edges : 3], before[1 : 3 * self.num_edges : 3], strict=True
        )
        return next((child for parent, child in edges if parent == at), at)
