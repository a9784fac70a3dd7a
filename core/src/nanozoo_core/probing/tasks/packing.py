"""Words of mixed lengths, one behind another in a sample of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers

EXTRA = 3  # symbols of a word beside its elements: its start, "=", and the answer


@dataclass(frozen=True)
class PackedWords(Task):
    """As many words `> g1 .. gn = y` as fit, then `>` to the end; y is one of the elements."""

    beyond: ClassVar[Sequence[int]]
    """Numbers of elements at which one word alone is tested, where training had no longer ones."""

    shortest: int = 1
    longest: int = 8
    length: int = 64

    @property
    def num_elements(self) -> int:
        raise NotImplementedError

    def answer(self, word: Sequence[int]) -> int:
        """y of a word."""
        raise NotImplementedError

    @property
    def num_symbols(self) -> int:
        """The elements, and behind them `>` and `=`."""
        return self.num_elements + 2

    @property
    def chance(self) -> float:
        return 1 / self.num_elements

    def check(self) -> list[str]:
        if 1 <= self.shortest <= self.longest <= self.length - EXTRA:
            return []
        return [
            f"{self.name}.shortest={self.shortest} must be at least 1 and at most "
            f"{self.name}.longest={self.longest}, which must leave room for {EXTRA} more in "
            f"{self.name}.length={self.length}"
        ]

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        """Numbers of elements and the elements are uniform; groups are the numbers.

        What is drawn is enough for the most words that could fit, so that no draw depends on
        another.
        """
        start, equals = self.num_elements, self.num_elements + 1
        most = self.length // (self.shortest + EXTRA)
        sizes = integers(generator, self.longest + 1, most, low=self.shortest)
        elements = integers(generator, self.num_elements, most * self.longest)
        symbols: list[int] = []
        answers, groups = [], []
        for number, size in enumerate(sizes):
            if len(symbols) + size + EXTRA > self.length:
                break
            word = elements[number * self.longest : number * self.longest + size]
            symbols += [start, *word, equals, self.answer(word)]
            answers.append(len(symbols) - 1)
            groups.append(size)
        symbols += [start] * (self.length - len(symbols))
        return Sample(tuple(symbols), tuple(answers), tuple(groups))

    def guess(self, before: Sequence[int], seed: int) -> int:
        return 0

    def tests_beyond(self) -> dict[str, Task]:
        return {
            f"{size} {self.group_name}": replace(
                self, shortest=size, longest=size, length=size + EXTRA
            )
            for size in self.beyond
        }
