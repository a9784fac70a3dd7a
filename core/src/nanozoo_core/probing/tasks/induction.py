"""Induction: what followed the trigger before follows it again, at the trained length and beyond.

Reference: arXiv 2312.00752, section 4.1.2 and tables 2 and 11; no code was released. Training has
several triggers with one follower, of which all but the first are asked for: one answer a window
does not train on a processor. The test has one trigger, as then the answer is not the most frequent
symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers, most_frequent, shuffled

NUM_SPECIAL = 2  # the trigger, and one that the published vocabulary has and no text shows


@dataclass(frozen=True)
class Induction(Task):
    """Uniform symbols, among them `num_triggers` triggers with one common follower, then the
    trigger and the answer."""

    name: ClassVar = "induction"
    number: ClassVar = 8
    group_name: ClassVar = "distance of at least"
    guess_name: ClassVar = "the most frequent symbol"
    long_knobs: ClassVar = {"length": 256}

    num_symbols: int = 16
    length: int = 64
    num_triggers: int = 8

    @property
    def num_letters(self) -> int:
        return self.num_symbols - NUM_SPECIAL

    @property
    def chance(self) -> float:
        return 1 / self.num_letters

    def check(self) -> list[str]:
        problems = []
        if self.num_symbols < NUM_SPECIAL + 2:
            problems.append(f"induction.num_symbols={self.num_symbols} must be at least 4")
        if not 1 <= self.num_triggers <= (self.length - 2) // 2:
            problems.append(
                f"induction.num_triggers={self.num_triggers} must be at least 1 and at most half "
                f"of induction.length={self.length} less 2"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        num_letters, trigger = self.length - 2, self.num_letters
        symbols = integers(generator, self.num_letters, num_letters)
        (answer,) = integers(generator, self.num_letters, 1)
        # Places at least two apart: a uniform subset of fewer places, each moved by its rank.
        room = num_letters - 2 - (self.num_triggers - 1)
        chosen = sorted(shuffled(generator, room)[: self.num_triggers])
        places = [place + rank for rank, place in enumerate(chosen)]
        for place in places:
            symbols[place : place + 2] = [trigger, answer]
        answers = [place + 1 for place in places[1:]] + [self.length - 1]
        first = places[0] + 1
        groups = tuple(_power_below(place - first) for place in answers)
        return Sample((*symbols, trigger, answer), tuple(answers), groups)

    def guess(self, before: Sequence[int], seed: int) -> int:
        return most_frequent(before, among=range(self.num_letters))

    def tested(self) -> Task:
        return replace(self, num_triggers=1)

    def tests_beyond(self) -> dict[str, Task]:
        """2, 4, 16 and 32 times the trained length."""
        lengths = [times * self.length for times in (2, 4, 16, 32)]
        return {
            f"length {length}": replace(self, num_triggers=1, length=length) for length in lengths
        }


def _power_below(distance: int) -> int:
    """The greatest power of two that is no more than it."""
    return 1 << (distance.bit_length() - 1)
