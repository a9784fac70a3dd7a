"""Selective copying: name the symbols that stood among blanks, in their order.

Reference: MAD's task (arXiv 2403.17844; mad/data/instances.py of athms/mad-lab) and Mamba's
(arXiv 2312.00752, appendix E.1). Ours asks for the next token where theirs tag, and places the
symbols on a uniform subset of the cells where MAD's last one always stands just before the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers, most_frequent, shuffled


@dataclass(frozen=True)
class SelectiveCopying(Task):
    """Cells with `num_copied` data symbols among blanks, then `go` and these symbols."""

    name: ClassVar = "copying"
    number: ClassVar = 4
    group_name: ClassVar = "place in the answer"
    guess_name: ClassVar = "the most frequent symbol of the sample"
    long_knobs: ClassVar = {"length": 256, "num_copied": 16}

    num_symbols: int = 16
    length: int = 73
    num_copied: int = 8

    @property
    def chance(self) -> float:
        return 1 / (self.num_symbols - 2)

    @property
    def num_cells(self) -> int:
        return self.length - self.num_copied - 1

    def check(self) -> list[str]:
        problems = []
        if self.num_symbols < 4:
            problems.append(
                f"{self.name}.num_symbols={self.num_symbols} must be at least 4: two data symbols, "
                "the blank and go"
            )
        if not 1 <= self.num_copied <= self.num_cells:
            problems.append(
                f"{self.name}.num_copied={self.num_copied} must be at least 1 and at most the "
                f"{self.num_cells} cells of {self.name}.length={self.length}"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        blank, go = self.num_symbols - 2, self.num_symbols - 1
        data = integers(generator, self.num_symbols - 2, self.num_copied)
        places = sorted(shuffled(generator, self.num_cells)[: self.num_copied])
        cells = [blank] * self.num_cells
        for place, symbol in zip(places, data, strict=True):
            cells[place] = symbol
        answers = range(self.num_cells + 1, self.length)
        return Sample((*cells, go, *data), tuple(answers), tuple(range(self.num_copied)))

    def guess(self, before: Sequence[int], seed: int) -> int:
        return most_frequent(before[: self.num_cells], among=range(self.num_symbols - 2))


@dataclass(frozen=True)
class MambaCopying(SelectiveCopying):
    """The same at the size that Mamba's paper has scaled down: 15 data symbols, 128 cells."""

    name: ClassVar = "copying_mamba"
    number: ClassVar = 9
    long_knobs: ClassVar = {"length": 1024, "num_copied": 16}

    num_symbols: int = 17
    length: int = 137
    num_copied: int = 8
