"""MAD's fuzzy recall: keys and values of several symbols, without marks between them.

Reference: arXiv 2403.17844; mad/data/instances.py of athms/mad-lab. There keys of the test all have
the greatest length; that is a test of its own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers, most_frequent, shuffled

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""A key and a value."""


@dataclass(frozen=True)
class FuzzyRecall(Task):
    """Pairs of a key, distinct symbols in some order, and a value. One pair is planted at a uniform
    place and repeated at the end; padding leads. All of a repeated key's value is asked for."""

    name: ClassVar = "recall_fuzzy"
    number: ClassVar = 3
    headline: ClassVar = "exact"
    group_name: ClassVar = "place in the value"
    guess_name: ClassVar = "the most frequent symbol of values so far"
    is_quick: ClassVar = False
    long_knobs: ClassVar = {"length": 128, "longest": 3}

    num_symbols: int = 16
    length: int = 64
    longest: int = 2
    shortest_key: int = 1

    @property
    def num_key_symbols(self) -> int:
        return (self.num_symbols - 1) // 2

    @property
    def value_symbols(self) -> range:
        return range(self.num_key_symbols, self.num_symbols - 1)

    @property
    def chance(self) -> float:
        return 1 / len(self.value_symbols)

    def check(self) -> list[str]:
        problems = []
        if not 1 <= self.shortest_key <= self.longest <= self.num_key_symbols:
            problems.append(
                f"recall_fuzzy.shortest_key={self.shortest_key} must be at least 1 and at most "
                f"recall_fuzzy.longest={self.longest}, and that at most the "
                f"{self.num_key_symbols} symbols of keys with recall_fuzzy.num_symbols="
                f"{self.num_symbols}"
            )
        if self.length < 4 * self.longest:
            problems.append(
                f"recall_fuzzy.length={self.length} must be at least {4 * self.longest}, for two "
                f"pairs with recall_fuzzy.longest={self.longest}"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        most = self.length // 2  # pairs that may fit, the planted one first
        key_sizes = integers(generator, self.longest + 1, most, low=self.shortest_key)
        value_sizes = integers(generator, self.longest + 1, most, low=1)
        orders = [shuffled(generator, self.num_key_symbols) for _ in range(most)]
        drawn = integers(generator, len(self.value_symbols), most * self.longest)
        (place,) = torch.rand(1, generator=generator).tolist()
        values: dict[tuple[int, ...], tuple[int, ...]] = {}
        pairs = []
        for number in range(most):
            key = tuple(orders[number][: key_sizes[number]])
            first = number * self.longest
            own = (self.num_key_symbols + n for n in drawn[first : first + value_sizes[number]])
            pairs.append((key, values.setdefault(key, tuple(own))))
        planted, others = pairs[0], pairs[1:]
        room = self.length - 2 * _size(planted)
        shown = []
        for pair in others:
            if _size(pair) > room:
                break
            shown.append(pair)
            room -= _size(pair)
        shown.insert(int(place * (len(shown) + 1)), planted)
        return self._written([*shown, planted], room)

    def _written(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], lead: int
    ) -> Sample:
        symbols = [self.num_symbols - 1] * lead
        answers: list[int] = []
        groups: list[int] = []
        known: set[tuple[int, ...]] = set()
        for key, value in pairs:
            symbols += key
            if key in known:
                answers += range(len(symbols), len(symbols) + len(value))
                groups += range(len(value))
            known.add(key)
            symbols += value
        return Sample(tuple(symbols), tuple(answers), tuple(groups))

    def guess(self, before: Sequence[int], seed: int) -> int:
        return most_frequent(before, among=self.value_symbols)

    def tests_beyond(self) -> dict[str, Task]:
        return {f"keys of {self.longest}": replace(self, shortest_key=self.longest)}


def _size(pair: Pair) -> int:
    key, value = pair
    return len(key) + len(value)
