"""k-hop induction: go back k times to where the symbol stood before, and name what followed it.

Reference: arXiv 2402.09268, definition 4.1; src/tasks.py of chsanford/hop-induction-heads, which
tags all positions where ours asks at four places of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers

NUM_QUESTIONS = 4
SHARES = tuple(range(8 - NUM_QUESTIONS + 1, 9))  # eighths of the text at which it is asked


@dataclass(frozen=True)
class Hops(Task):
    """`k X1 .. XN` without equal neighbours, and `? answer` behind four places; k is a power of two
    up to `most_hops`. find(i) is the last j <= i with X[j-1] = X[i], and the answer the symbol
    where k steps of find lead. Where they lead nowhere, `?` stands for the answer, unscored."""

    name: ClassVar = "hops"
    number: ClassVar = 16
    group_name: ClassVar = "hops"
    guess_name: ClassVar = "the last symbol; for one hop another than it"
    batch_windows: ClassVar = 16
    is_quick: ClassVar = False
    long_knobs: ClassVar = {"num_letters": 96, "most_hops": 16}

    alphabet: int = 4
    num_letters: int = 48
    most_hops: int = 4

    @property
    def num_counts(self) -> int:
        """How many values k has."""
        return self.most_hops.bit_length()

    @property
    def num_symbols(self) -> int:
        return self.alphabet + self.num_counts + 1

    @property
    def length(self) -> int:
        return 1 + self.num_letters + 2 * NUM_QUESTIONS

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def check(self) -> list[str]:
        problems = []
        if self.alphabet < 3:
            problems.append(f"hops.alphabet={self.alphabet} must be at least 3")
        if self.most_hops < 1 or self.most_hops & (self.most_hops - 1):
            problems.append(f"hops.most_hops={self.most_hops} must be a power of two")
        if self.num_letters < 6 * self.most_hops or self.num_letters % 8:
            problems.append(
                f"hops.num_letters={self.num_letters} must be a multiple of 8, and at least "
                f"{6 * self.most_hops}, six for each of hops.most_hops"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        (number,) = integers(generator, self.num_counts, 1)
        (first,) = integers(generator, self.alphabet, 1)
        steps = integers(generator, self.alphabet, self.num_letters - 1, low=1)
        letters = [first]
        for step in steps:
            letters.append((letters[-1] + step) % self.alphabet)
        hops, question = 1 << number, self.num_symbols - 1
        symbols = [self.alphabet + number]
        answers = []
        for place, letter in enumerate(letters):
            symbols.append(letter)
            if 8 * (place + 1) in [share * self.num_letters for share in SHARES]:
                found = hop(letters, place, hops)
                symbols += [question, question if found is None else letters[found]]
                if found is not None:
                    answers.append(len(symbols) - 1)
        return Sample(tuple(symbols), tuple(answers), (hops,) * len(answers))

    def guess(self, before: Sequence[int], seed: int) -> int:
        last = before[-2]
        if before[0] == self.alphabet:  # one hop leads to what followed an equal symbol
            return (last + 1) % self.alphabet
        return last


def hop(letters: Sequence[int], place: int, hops: int) -> int | None:
    """Where `hops` steps of find lead from a place, or None."""
    found: int | None = place
    for _ in range(hops):
        assert found is not None
        here = letters[found]
        found = next((j for j in range(found, 0, -1) if letters[j - 1] == here), None)
        if found is None:
            return None
    return found
