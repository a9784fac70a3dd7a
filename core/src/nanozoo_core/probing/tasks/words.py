"""Word problems of groups: the product of a word of elements.

Reference: arXiv 2404.08819, section 6; src/generate_data.py of jopetty/word-problem, which tags the
product of every prefix where ours asks for that of the word: fed the product so far, a model would
need one multiplication alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import ClassVar

from nanozoo_core.probing.tasks.packing import PackedWords

GROUPS = {6: (3, False), 24: (4, False), 60: (5, True), 120: (5, False)}
"""By their size S3, S4, A5 and S5: permutations of so many things, only the even ones or all."""

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class WordProblem(PackedWords):
    """`> g1 .. gn = y` with y = g1 g2 .. gn, the first element acting first; words packed."""

    name: ClassVar = "words"
    number: ClassVar = 14
    group_name: ClassVar = "elements"
    guess_name: ClassVar = "always the identity"
    long_knobs: ClassVar = {"group_size": 60}
    beyond: ClassVar = (8, 16, 32)

    group_size: int = 6

    @property
    def num_elements(self) -> int:
        return self.group_size

    def check(self) -> list[str]:
        problems = super().check()
        if self.group_size not in GROUPS:
            sizes = ", ".join(map(str, GROUPS))
            problems.append(f"words.group_size={self.group_size} must be one of {sizes}")
        return problems

    def answer(self, word: Sequence[int]) -> int:
        return product(self.group_size, word)


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
