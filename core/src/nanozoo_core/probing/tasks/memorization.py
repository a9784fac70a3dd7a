"""MAD's memorization: a fixed map from keys to values, which stands nowhere but in the weights.

Reference: arXiv 2403.17844; mad/data/instances.py of athms/mad-lab. Keys of a sample are distinct,
so that none of its answers can be read off the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from nanozoo_core.probing.task import DICTIONARY, Sample, Task, shuffled
from nanozoo_core.randomness import seeded_generator


@dataclass(frozen=True)
class Memorization(Task):
    """`key value` pairs with keys drawn without replacement, from `num_train` samples of training
    that come again and again."""

    name: ClassVar = "memorization"
    number: ClassVar = 6
    group_name: ClassVar = "eighth of the sample"
    guess_name: ClassVar = "always the same value"
    long_knobs: ClassVar = {"num_symbols": 1024}

    num_symbols: int = 256
    length: int = 32
    num_train: int = 256

    @property
    def num_keys(self) -> int:
        return (self.num_symbols - 1) // 2

    @property
    def num_values(self) -> int:
        return self.num_symbols - 1 - self.num_keys

    @property
    def chance(self) -> float:
        return 1 / self.num_values

    def check(self) -> list[str]:
        if self.length % 2 == 0 and 1 <= self.length // 2 <= self.num_keys and self.num_train:
            return []
        return [
            f"memorization.length={self.length} must be even and hold at most the {self.num_keys} "
            f"keys of memorization.num_symbols={self.num_symbols}, and memorization.num_train="
            f"{self.num_train} must be at least 1"
        ]

    def train_index(self, index: int) -> int:
        return index % self.num_train

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        values = _values(seed, self.number, self.num_keys, self.num_values)
        keys = shuffled(generator, self.num_keys)[: self.length // 2]
        symbols = [symbol for key in keys for symbol in (key, values[key])]
        answers = range(1, self.length, 2)
        groups = tuple(8 * place // self.length for place in answers)
        return Sample(tuple(symbols), tuple(answers), groups)

    def guess(self, before: Sequence[int], seed: int) -> int:
        return self.num_keys


@cache
def _values(seed: int, number: int, num_keys: int, num_values: int) -> list[int]:
    """The value of each key: the first ones of a shuffle."""
    order = shuffled(seeded_generator(seed, number, DICTIONARY, 0), num_values)
    return [num_keys + value for value in order[:num_keys]]
