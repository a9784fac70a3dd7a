"""Word problems of groups: the product of a word of elements.

Reference: arXiv 2404.08819, section 6; src/generate_data.py of jopetty/word-problem, which tags the
product of every prefix where ours asks for that of the word: fed the product so far, a model would
need one multiplication alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task
from nanozoo_core.probing.tasks.packing import EXTRA, packed

GROUPS = {6: (3, False), 24: (4, False), 60: (5, True), 120: (5, False)}
"""By their size S3, S4, A5 and S5: permutations of so many things, only the even ones or all."""

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class WordProblem(Task):
    """`> g1 .. gn = y` with y = g1 g2 .. gn, the first element acting first; words packed."""

    name: ClassVar = "words"
    number: ClassVar = 14
    group_name: ClassVar = "elements"
    guess_name: ClassVar = "always the identity"
    long_knobs: ClassVar = {"group_size": 60}

    group_size: int = 6
    shortest: int = 1
    longest: int = 8
    length: int = 64

    @property
    def num_symbols(self) -> int:
        return self.group_size + 2

    @property
    def chance(self) -> float:
        return 1 / self.group_size

    def check(self) -> list[str]:
        problems = []
        if self.group_size not in GROUPS:
            sizes = ", ".join(map(str, GROUPS))
            problems.append(f"words.group_size={self.group_size} must be one of {sizes}")
        if not 1 <= self.shortest <= self.longest <= self.length - EXTRA:
            problems.append(
                f"words.shortest={self.shortest} must be at least 1 and at most words.longest="
                f"{self.longest}, which must leave room for {EXTRA} more in words.length="
                f"{self.length}"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        return packed(
            generator,
            length=self.length,
            shortest=self.shortest,
            longest=self.longest,
            num_elements=self.group_size,
            start=self.group_size,
            equals=self.group_size + 1,
            answer=lambda word: product(self.group_size, word),
        )

    def guess(self, before: Sequence[int]) -> int:
        return 0

    def tests_beyond(self) -> dict[str, Task]:
        return {
            f"{size} elements": replace(self, shortest=size, longest=size, length=size + EXTRA)
            for size in (8, 16, 32)
        }


@cache
def elements(group_size: int) -> list[Permutation]:
    """The permutations of a group in lexical order, the identity first."""
    degree, is_even = GROUPS[group_size]
    return [p for p in permutations(range(degree)) if not is_even or not _is_odd(p)]


def product(group_size: int, word: Sequence[int]) -> int:
    """The number of the product of the elements with these numbers, the first acting first."""
    known = elements(group_size)
    found = known[0]
    for number in word:
        found = tuple(known[number][image] for image in found)
    return known.index(found)


def _is_odd(permutation: Permutation) -> bool:
    degree = len(permutation)
    return sum(permutation[i] > permutation[j] for j in range(degree) for i in range(j)) % 2 == 1
