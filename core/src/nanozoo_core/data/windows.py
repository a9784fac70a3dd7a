"""Which window of the training data is read when: a pure function of (seed, index).

All windows of an epoch are visited in a seeded order that is computed, never stored: a permutation
of 0 .. N-1 as a small Feistel network over two digits (N up to 2^40 costs the same as N = 10).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nanozoo_core.data.shards import Shard, Tokens, document_starts
from nanozoo_core.errors import DataError
from nanozoo_core.randomness import hash_integers

Align = Literal["stream", "documents", "truncate"]
Ints = npt.NDArray[np.int64]

_ROUNDS = 6


def permute(index: Ints, size: int, *key: int) -> Ints:
    """Where a seeded permutation of 0 .. size - 1 sends each `index`.

    An index is written as (a, b) with a < A, b < B and A * B just above `size`; each round adds to
    one digit a hash of the other, which can be undone, so the rounds permute all A * B pairs. A
    result past the end goes through them again until it falls inside (cycle walking).
    """
    high = math.isqrt(size - 1) + 1
    low = -(-size // high)
    keys = _round_keys(*key)
    result = index.astype(np.uint64)
    walking = np.arange(result.size)
    while walking.size:
        a, b = np.divmod(result[walking], np.uint64(low))
        for number in range(0, _ROUNDS, 2):
            a = (a + _scramble(b, keys[number])) % np.uint64(high)
            b = (b + _scramble(a, keys[number + 1])) % np.uint64(low)
        result[walking] = a * np.uint64(low) + b
        walking = walking[result[walking] >= size]
    return result.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _round_keys(*key: int) -> list[int]:
    return [hash_integers(*key, number) for number in range(_ROUNDS)]


def _scramble(x: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """A hash of each x below 2^32, so that a digit can be added without overflow."""
    x = (x ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return x >> np.uint64(32)


@dataclass(frozen=True)
class Windows:
    """All windows of `seq_len + lookahead` tokens of some shards, none across two of them.

    `stream`: window w of a shard begins at offset + w * seq_len, the offset being new in every
    epoch; so neighbours share one boundary token, and all but the first token is scored once.
    `documents`: every document is cut into such windows from its own start, the last of them
    running on into the next documents; a token is scored at least once. No offset.
    `truncate`: a window begins with a document and holds the first seq_len tokens of this and the
    following documents, one after the other, until it is full; what is left of a document is not
    read. The next window begins with the first document of which nothing was an input. No offset.
    """

    shards: Sequence[Shard]
    seq_len: int
    lookahead: int
    starts: tuple[Ints, ...] | None  # but for stream: first tokens of each shard's windows
    bounds: tuple[Ints, ...] | None  # truncate: where each shard's documents begin, and its end
    max_offsets: Ints  # stream: (shards,)
    ends: Ints  # (shards,) windows up to and including each shard

    @classmethod
    def find(
        cls,
        shards: Sequence[Shard],
        *,
        seq_len: int,
        lookahead: int,
        align: Align,
        separator: int,
    ) -> Windows:
        """Raises: DataError when no shard holds one window."""
        longest = max(shard.num_tokens for shard in shards)
        if longest < seq_len + lookahead:
            raise DataError(
                f"data.seq_len={seq_len} is longer than the training data, whose longest shard has "
                f"{longest} tokens; use at most {max(longest - lookahead, 1)}, or more text"
            )
        room = np.array([shard.num_tokens - lookahead for shard in shards])
        # The count of windows must not depend on the offset, or epochs would differ in length.
        max_offsets = np.clip(room - seq_len, 0, seq_len - 1)
        counts = np.maximum(room - max_offsets, 0) // seq_len
        starts = bounds = None
        if align == "documents":
            starts = tuple(
                _document_windows(shard, separator, seq_len, lookahead) for shard in shards
            )
        elif align == "truncate":
            bounds = tuple(
                np.append(document_starts(shard, separator), shard.num_tokens) for shard in shards
            )
            starts = tuple(_truncated_windows(part, seq_len, lookahead) for part in bounds)
        if starts is not None:
            counts = np.array([part.size for part in starts])
        if not counts.any():
            raise DataError(
                f"data.packing=truncate finds no window in the training data: the documents of a "
                f"shard, cut to data.seq_len={seq_len} tokens each, do not fill one; use less, or "
                f"more text"
            )
        return cls(shards, seq_len, lookahead, starts, bounds, max_offsets, np.cumsum(counts))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def counts(self, number: int) -> tuple[int, ...]:
        """As of several sources: the first `number` windows are all of this one."""
        return (number,)

    @property
    def parts(self) -> tuple[Windows, ...]:
        return (self,)

    def visit(self, indices: Ints, seed: int) -> Tokens:
        """The tokens of the windows visited at `indices`, (B, seq_len + lookahead)."""
        return self.read(*self.locate(indices, seed))

    def locate(self, indices: Ints, seed: int) -> tuple[Ints, Ints]:
        """The shards and first tokens of the windows visited at `indices` (0, 1, ... over all
        epochs)."""
        shards, starts = np.empty_like(indices), np.empty_like(indices)
        epochs, within = np.divmod(indices, len(self))
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            windows = permute(within[rows], len(self), seed, epoch)
            shard = np.searchsorted(self.ends, windows, side="right")
            window = windows - np.where(shard > 0, self.ends[shard - 1], 0)
            shards[rows] = shard
            starts[rows] = self._first_tokens(shard, window, hash_integers(seed, epoch))
        return shards, starts

    def _first_tokens(self, shard: Ints, window: Ints, epoch_key: int) -> Ints:
        if self.starts is not None:
            pairs = zip(shard.tolist(), window.tolist(), strict=True)
            return np.array([self.starts[s][w] for s, w in pairs])
        hashes = _scramble(shard.astype(np.uint64), epoch_key).astype(np.int64)
        return hashes % (self.max_offsets[shard] + 1) + window * self.seq_len

    @functools.cached_property
    def _dtype(self) -> npt.DTypeLike:
        """Of tokens, of whichever shard."""
        return np.result_type(*{shard.dtype for shard in self.shards})

    def read(self, shards: Ints, starts: Ints) -> Tokens:
        """(B, seq_len + lookahead) tokens."""
        length = self.seq_len + self.lookahead
        tokens = np.empty((starts.size, length), dtype=self._dtype)
        pairs = zip(shards.tolist(), starts.tolist(), strict=True)
        for row, (shard, start) in enumerate(pairs):
            if self.bounds is None:
                tokens[row] = self.shards[shard].tokens[start : start + length]
            else:
                self._fill(tokens[row], shard, start)
        return tokens

    def _fill(self, row: Tokens, shard: int, start: int) -> None:
        """Writes the beginnings of documents into a window, from the one at `start` on."""
        assert self.bounds is not None
        tokens, bounds = self.shards[shard].tokens, self.bounds[shard]
        document, filled = int(np.searchsorted(bounds, start)), 0
        while filled < row.size:
            begin, end = bounds[document : document + 2]
            part = tokens[begin : min(end, begin + self.seq_len)][: row.size - filled]
            row[filled : filled + part.size] = part
            document, filled = document + 1, filled + part.size


def _document_windows(shard: Shard, separator: int, seq_len: int, lookahead: int) -> Ints:
    """First tokens of a shard's windows in the `documents` alignment."""
    starts = document_starts(shard, separator)
    if not starts.size or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    ends = np.append(starts[1:], shard.num_tokens)
    counts = -(-(ends - starts) // seq_len)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    windows = np.repeat(starts, counts) + within * seq_len
    last = shard.num_tokens - seq_len - lookahead
    return np.unique(np.minimum(windows, last)) if last >= 0 else windows[:0]


def _truncated_windows(bounds: Ints, seq_len: int, lookahead: int) -> Ints:
    """First tokens of a shard's windows in the `truncate` alignment; tokens before its first
    document are not read."""
    lengths = np.minimum(np.diff(bounds), seq_len)
    before = np.cumsum(lengths) - lengths  # tokens read of earlier documents, if all were read
    following = np.searchsorted(before, before + seq_len).tolist()
    is_full = (lengths.sum() - before >= seq_len + lookahead).tolist()
    found, document = [], 0
    while document < len(following) and is_full[document]:
        found.append(document)
        document = following[document]
    return bounds[np.array(found, dtype=np.int64)]
