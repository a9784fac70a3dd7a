"""Multi-query associative recall: pairs first, then questions for some of them among blanks.

Reference: arXiv 2312.04927; zoology/data/multiquery_ar.py of HazyResearch/zoology, which tags where
ours puts the value behind its key. As values are distinct and each is asked for once, those already
answered drop out; with fewer questions than pairs that tells little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, shuffled

POWER = 0.01  # a of the weight (g + 1)^(a - 1) of slot g: most questions come soon


@dataclass(frozen=True)
class MultiQueryRecall(Task):
    """`num_pairs` pairs of distinct keys and values, then slots of two symbols, in `num_queries` of
    which a key stands with its value; the others are blank."""

    name: ClassVar = "mqar"
    number: ClassVar = 7
    group_name: ClassVar = "answers before"
    guess_name: ClassVar = "a value not asked for yet"
    batch_windows: ClassVar = 16
    is_quick: ClassVar = False
    one_step: ClassVar = True
    long_knobs: ClassVar = {"num_symbols": 513, "num_pairs": 16, "num_queries": 8, "length": 64}

    num_symbols: int = 65
    num_pairs: int = 8
    num_queries: int = 4
    length: int = 32

    @property
    def num_keys(self) -> int:
        return (self.num_symbols - 1) // 2

    @property
    def num_slots(self) -> int:
        return (self.length - 2 * self.num_pairs) // 2

    @property
    def chance(self) -> float:
        return 1 / self.num_keys

    def check(self) -> list[str]:
        problems = []
        if not 1 <= self.num_queries <= self.num_pairs <= self.num_keys:
            problems.append(
                f"mqar.num_queries={self.num_queries} must be at least 1 and at most "
                f"mqar.num_pairs={self.num_pairs}, and that at most the {self.num_keys} keys of "
                f"mqar.num_symbols={self.num_symbols}"
            )
        if self.length % 2 or self.num_slots < self.num_queries:
            problems.append(
                f"mqar.length={self.length} must be even and at least "
                f"{2 * (self.num_pairs + self.num_queries)}, two for each pair and question"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        keys = shuffled(generator, self.num_keys)[: self.num_pairs]
        values = shuffled(generator, self.num_keys)[: self.num_pairs]
        asked = shuffled(generator, self.num_pairs)[: self.num_queries]
        weights = torch.arange(1, self.num_slots + 1, dtype=torch.float64) ** (POWER - 1)
        slots = weights.multinomial(self.num_queries, generator=generator).tolist()
        symbols = [0] * self.length
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            symbols[2 * number : 2 * number + 2] = self._pair(key, value)
        for slot, number in zip(slots, asked, strict=True):
            place = 2 * (self.num_pairs + slot)
            symbols[place : place + 2] = self._pair(keys[number], values[number])
        answers = tuple(2 * (self.num_pairs + slot) + 1 for slot in sorted(slots))
        return Sample(tuple(symbols), answers, tuple(range(self.num_queries)))

    def _pair(self, key: int, value: int) -> list[int]:
        return [1 + key, 1 + self.num_keys + value]

    def guess(self, before: Sequence[int], seed: int) -> int:
        shown = before[1 : 2 * self.num_pairs : 2]
        answered = before[2 * self.num_pairs + 1 :: 2]
        return next(value for value in shown if value not in answered)
