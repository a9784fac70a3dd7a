"""The first points of every search and the seeds of its sampler: functions of whole numbers, the
same in every version of Optuna and for every model.

A share is taken by the name of its dimension, so that models which share a key begin at the same
places of it, whatever keys they have beside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from nanozoo_core.randomness import hash_integers


def shares(names: Sequence[str], *, seed: int, number: int) -> dict[str, float]:
    """A random point of the unit cube, a number in [0, 1) by the name of each dimension."""
    return {name: hash_integers(seed, number, _key(name)) / 2**64 for name in names}


def sampler_seed(seed: int, number: int) -> int:
    """Of the sampler that proposes a trial: 32 bits."""
    return hash_integers(seed, number, _key("sampler")) >> 32


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
