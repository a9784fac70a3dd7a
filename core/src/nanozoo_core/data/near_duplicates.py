"""Which documents are nearly the same: MinHash of their lines (Broder 1997), found by bands
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).

The share of lines that two documents have in common, of all that either has, is estimated by the
share of equal places in their sketches.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nanozoo_core.data.corpora import document_digest

PLACES = 64
BANDS = 16  # of 4 places: pairs with half of their lines in common meet in 2 of 3 cases
SIMILAR = 0.5

Sketch = npt.NDArray[np.uint64]

_MULTIPLIERS, _SUMMANDS = (
    np.random.Generator(np.random.PCG64(seed)).integers(1, 2**63, PLACES, dtype=np.uint64) | bit
    for seed, bit in ((1, np.uint64(1)), (2, np.uint64(0)))
)


def sketch(document: bytes) -> Sketch:
    """(PLACES,) uint64: the least of each of so many hashes over a document's different lines,
    without the space around them."""
    lines = {line.strip() for line in document.split(b"\n")} - {b""}
    values = np.fromiter((zlib.crc32(line) for line in lines), np.uint64, len(lines))
    if not lines:
        return np.zeros(PLACES, np.uint64)
    # The upper half of a product is a hash of its factor (Dietzfelbinger et al. 1997).
    hashes = (values[:, None] * _MULTIPLIERS + _SUMMANDS) >> np.uint64(32)
    least: Sketch = hashes.min(axis=0)
    return least


def leaders(digests: Sequence[str], sketches: Sequence[Sketch]) -> list[str]:
    """A digest for each document, which those that are nearly the same share: its own for one that
    is like no other, else one made of the least of its group."""
    parent = list(range(len(digests)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for band in np.split(np.asarray(sketches), BANDS, axis=1):
        first: dict[bytes, int] = {}
        for number, places in enumerate(band):
            other = first.setdefault(places.tobytes(), number)
            if np.mean(sketches[number] == sketches[other]) >= SIMILAR:
                parent[root(number)] = root(other)
    groups: dict[int, list[str]] = {}
    for number, name in enumerate(digests):
        groups.setdefault(root(number), []).append(name)
    # The least itself would be for validation the more often, the larger its group is.
    made = {
        number: document_digest(min(names).encode()) if len(set(names)) > 1 else names[0]
        for number, names in groups.items()
    }
    return [made[root(number)] for number in range(len(digests))]
