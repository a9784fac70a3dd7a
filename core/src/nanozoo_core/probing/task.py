"""What all tasks have in common: a sample with its answers marked, a pure function of integers.

S symbols of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from nanozoo_core.randomness import seeded_generator

TRAIN, TEST, DICTIONARY, TUNING = range(4)
"""The splits of a task: samples of training, of the test, the tables that hold for all samples of a
seed, and samples by which rates are chosen."""

Knob = int | str
"""A size of a task, or the name of one of its forms."""
Score = Literal["accuracy", "exact", "first"]
"""Of all answers; of samples with all answers right; of the answers of the least group."""


@dataclass(frozen=True)
class Sample:
    """A text of symbols, and which of them are answers."""

    symbols: tuple[int, ...]  # (S,)
    answers: tuple[int, ...]  # places of the answers' first symbols, rising
    groups: tuple[int, ...]  # of each answer, what it is reported under: a length or a distance
    sizes: tuple[int, ...] = ()  # of each answer, how many symbols it has; one each if not given

    def spans(self) -> list[range]:
        """The places of the symbols of each answer."""
        sizes = self.sizes or (1,) * len(self.answers)
        return [range(place, place + size) for place, size in zip(self.answers, sizes, strict=True)]


class Task:
    """A subclass is a frozen dataclass whose fields are the task's knobs; their values by default
    are those of a quick probe.

    Models know next tokens alone, so that an answer stands right behind its question.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    """The first part of every key of a generator."""
    headline: ClassVar[Score] = "accuracy"
    """Which score the matrix shows."""
    group_name: ClassVar[str] = "place"
    """What the groups are."""
    guess_name: ClassVar[str]
    """The strategy of `guess` in words."""
    batch_windows: ClassVar[int] = 32
    is_quick: ClassVar[bool] = True
    """Whether a small decoder was seen to leave the level of the guess in a quick probe."""
    long_knobs: ClassVar[Mapping[str, Knob]] = {}
    """Knobs of the long form that differ from those of the quick one."""

    symbol_bytes: ClassVar[bytes] = b""
    """The bytes that the symbols are where the task is text: a model that reads bytes reads them as
    they are."""
    one_step: ClassVar[bool] = False
    """Whether the headline of models that fill holes is that of one step: in several ones they
    could rule out what they have filled in already."""

    @property
    def num_symbols(self) -> int:
        raise NotImplementedError

    @property
    def length(self) -> int:
        """S."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """The share of answers that one drawn among all that an answer can be gets right."""
        raise NotImplementedError

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        """One sample. Args: seed: of the tables that hold for all samples."""
        raise NotImplementedError

    def guess(self, before: Sequence[int], seed: int) -> int:
        """What the strongest trivial strategy answers behind the symbols `before`. Args: seed: of
        the tables that hold for all samples."""
        raise NotImplementedError

    def check(self) -> list[str]:
        """A sentence for each knob that makes no task."""
        return []

    def train_index(self, index: int) -> int:
        """The sample that training shows as its `index`-th: another each time, unless a task has a
        number of samples that come again."""
        return index

    def tested(self) -> Task:
        """The setting of the test, as long as that of training."""
        return self

    def tests_beyond(self) -> dict[str, Task]:
        """Other settings at which the trained model is tested too, by name."""
        return {}

    def generator(self, seed: int, split: int, index: int) -> torch.Generator:
        """The one source of randomness of a sample."""
        return seeded_generator(seed, self.number, split, index)

    def sample(self, seed: int, split: int, index: int) -> Sample:
        """A pure function of its arguments, as (seed, number, split, index) seeds all draws."""
        return self.draw(self.generator(seed, split, index), seed)


# -- draws ------------------------------------------------------------------------------------


def integers(generator: torch.Generator, high: int, count: int, low: int = 0) -> list[int]:
    """`count` integers in low .. high - 1, uniform and independent."""
    return torch.randint(low, high, (count,), generator=generator).tolist()


def shuffled(generator: torch.Generator, count: int) -> list[int]:
    """0 .. count - 1 in uniform order."""
    return torch.randperm(count, generator=generator).tolist()


def most_frequent(symbols: Sequence[int], *, among: range) -> int:
    """The symbol of `among` that stands most often in `symbols`, the least such one."""
    return max(among, key=symbols.count)
