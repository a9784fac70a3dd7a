"""MAD's recall: keys and values in pairs, and a value is asked for wherever its key stands again.

Reference: arXiv 2403.17844; mad/data/instances.py of athms/mad-lab. There all tokens are targets in
training (loss=all here) and the answers alone in the test. Of its noisy form the guarded pair is
drawn here among the pairs that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers, most_frequent

PERCENT = 100


@dataclass(frozen=True)
class Recall(Task):
    """Pairs of a key and the value that a map of the sample gives it; the last key is no new one.

    Keys are the first half of the symbols without noise, values the second.
    """

    name: ClassVar = "recall"
    number: ClassVar = 1
    group_name: ClassVar = "eighth of the sample"
    guess_name: ClassVar = "the most frequent value so far"
    is_quick: ClassVar = False
    long_knobs: ClassVar = {"length": 64}

    num_symbols: int = 16
    length: int = 32
    num_noise: int = 0
    percent_noise: int = 0

    @property
    def num_keys(self) -> int:
        return (self.num_symbols - self.num_noise) // 2

    @property
    def values(self) -> range:
        return range(self.num_keys, 2 * self.num_keys)

    @property
    def chance(self) -> float:
        return 1 / self.num_keys

    def check(self) -> list[str]:
        problems = []
        if self.num_keys < 2 or self.num_symbols != 2 * self.num_keys + self.num_noise:
            problems.append(
                f"{self.name}.num_symbols={self.num_symbols} less {self.name}.num_noise="
                f"{self.num_noise} must be an even number of at least 4"
            )
        if self.length < 4 or self.length % 2:
            problems.append(
                f"{self.name}.length={self.length} must be an even number of at least 4"
            )
        if self.percent_noise > (PERCENT if self.num_noise else 0):
            problems.append(
                f"{self.name}.percent_noise={self.percent_noise} must be at most 100, and 0 with "
                f"{self.name}.num_noise=0"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        num_pairs = self.length // 2
        values = integers(generator, self.num_keys, self.num_keys)
        keys = integers(generator, self.num_keys, num_pairs)
        before = num_pairs - 1  # pairs before the last
        guarded, last = torch.rand(2, generator=generator).tolist()
        noisy = [100 * draw < self.percent_noise for draw in
                 torch.rand(before, generator=generator).tolist()]  # fmt: skip
        noisy[int(guarded * before)] = False
        noise = integers(generator, max(1, self.num_noise), 2 * before, low=0)
        shown = [key for key, is_noise in zip(keys[:before], noisy, strict=True) if not is_noise]
        keys[-1] = shown[int(last * len(shown))]
        symbols: list[int] = []
        answers = []
        known: set[int] = set()
        for pair, key in enumerate(keys):
            if pair < before and noisy[pair]:
                symbols += [2 * self.num_keys + n for n in noise[2 * pair : 2 * pair + 2]]
                continue
            symbols += [key, self.num_keys + values[key]]
            if key in known:
                answers.append(len(symbols) - 1)
            known.add(key)
        groups = tuple(8 * place // self.length for place in answers)
        return Sample(tuple(symbols), tuple(answers), groups)

    def guess(self, before: Sequence[int], seed: int) -> int:
        return most_frequent(before, among=self.values)


@dataclass(frozen=True)
class NoisyRecall(Recall):
    """Recall with pairs of noise, of symbols of their own, between the others."""

    name: ClassVar = "recall_noisy"
    number: ClassVar = 2
    long_knobs: ClassVar = {}

    num_symbols: int = 32
    length: int = 64
    num_noise: int = 16
    percent_noise: int = 20
