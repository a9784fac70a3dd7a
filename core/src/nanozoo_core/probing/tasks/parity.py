"""Parity of words of bits: the smallest state that has to be tracked exactly.

Reference: arXiv 2411.12537, figure 1, which trains to length 40 and tests to 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task
from nanozoo_core.probing.tasks.packing import EXTRA, packed

START, EQUALS = 2, 3


@dataclass(frozen=True)
class Parity(Task):
    """`> b1 .. bn = y` with y the sum of the bits modulo 2, words of mixed n packed."""

    name: ClassVar = "parity"
    number: ClassVar = 15
    group_name: ClassVar = "bits"
    guess_name: ClassVar = "always 0"
    long_knobs: ClassVar = {"longest": 16}

    shortest: int = 1
    longest: int = 8
    length: int = 64
    num_symbols: int = 4

    @property
    def chance(self) -> float:
        return 0.5

    def check(self) -> list[str]:
        problems = []
        if self.num_symbols != 4:
            problems.append(f"parity.num_symbols={self.num_symbols} must be 4: two bits, > and =")
        if not 1 <= self.shortest <= self.longest <= self.length - EXTRA:
            problems.append(
                f"parity.shortest={self.shortest} must be at least 1 and at most parity.longest="
                f"{self.longest}, which must leave room for {EXTRA} more in parity.length="
                f"{self.length}"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        return packed(
            generator,
            length=self.length,
            shortest=self.shortest,
            longest=self.longest,
            num_elements=2,
            start=START,
            equals=EQUALS,
            answer=lambda bits: sum(bits) % 2,
        )

    def guess(self, before: Sequence[int]) -> int:
        return 0

    def tests_beyond(self) -> dict[str, Task]:
        """One word of 8, 16, 32 or 64 bits, where training had no longer ones."""
        return {
            f"{bits} bits": replace(self, shortest=bits, longest=bits, length=bits + EXTRA)
            for bits in (8, 16, 32, 64)
        }
