"""Windows of several sources, interleaved by their shares: a pure function of (seed, index).

The sources are split off one after the other. Of the windows that the ones before it leave, counted
from 0, source p takes those at which floor(n * r) steps up, r being its part of what is left; so
after any number of windows each source is within one of its share for every source before it, and
which window of a source comes next is known without counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanozoo_core.data.shards import Tokens
from nanozoo_core.data.windows import Ints, Windows
from nanozoo_core.randomness import hash_integers

UNITS = 1 << 20  # of a share; whole numbers, so that no rounding decides what is read


@dataclass(frozen=True)
class MixedWindows:
    """The windows of all sources; each source goes through its own in epochs of its own."""

    parts: tuple[Windows, ...]
    takes: tuple[int, ...]  # each part's units of what the parts before it leave

    @classmethod
    def of(cls, parts: Sequence[Windows], shares: Sequence[float]) -> MixedWindows:
        """Args: shares: of the windows, positive, with the sum 1."""
        takes = []
        left = sum(shares)
        for share in shares:
            takes.append(min(UNITS, max(1, round(UNITS * share / left))) if left > 0 else UNITS)
            left -= share
        return cls(tuple(parts), (*takes[:-1], UNITS))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def counts(self, number: int) -> tuple[int, ...]:
        """How many of the first `number` windows each source gives."""
        found = []
        for take in self.takes:
            found.append(number * take // UNITS)
            number -= found[-1]
        return tuple(found)

    def places(self, indices: Ints) -> tuple[Ints, Ints]:
        """The source of the windows visited at `indices`, and their number within it."""
        part, within = np.empty_like(indices), np.empty_like(indices)
        rest, is_open = indices.copy(), np.ones(indices.shape, dtype=bool)
        for number, take in enumerate(self.takes):
            before = rest * take // UNITS
            is_mine = is_open & ((rest + 1) * take // UNITS > before)
            part[is_mine], within[is_mine] = number, before[is_mine]
            is_open &= ~is_mine
            rest -= before
        return part, within

    def visit(self, indices: Ints, seed: int) -> Tokens:
        """The tokens of the windows visited at `indices`, (B, seq_len + lookahead)."""
        part, within = self.places(indices)
        rows = [np.flatnonzero(part == number) for number in range(len(self.parts))]
        read = [
            windows.visit(within[mine], hash_integers(seed, number))
            for number, (windows, mine) in enumerate(zip(self.parts, rows, strict=True))
        ]
        tokens: Tokens = np.concatenate(read)
        return tokens[np.argsort(np.concatenate(rows))]
