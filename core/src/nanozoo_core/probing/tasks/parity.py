"""Parity of words of bits: the smallest state that has to be tracked exactly.

Reference: arXiv 2411.12537, figure 1, which trains to length 40 and tests to 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nanozoo_core.probing.tasks.packing import PackedWords


@dataclass(frozen=True)
class Parity(PackedWords):
    """`> b1 .. bn = y` with y the sum of the bits modulo 2, words of mixed n packed."""

    name: ClassVar = "parity"
    number: ClassVar = 15
    group_name: ClassVar = "bits"
    guess_name: ClassVar = "always 0"
    long_knobs: ClassVar = {"longest": 16}
    beyond: ClassVar = (8, 16, 32, 64)

    @property
    def num_elements(self) -> int:
        return 2

    def answer(self, word: Sequence[int]) -> int:
        return sum(word) % 2
