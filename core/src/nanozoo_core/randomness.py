"""Random numbers as pure functions of some integers, the same on every machine and rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1


def hash_integers(*key: int) -> int:
    """A 64-bit hash of some integers (splitmix64 steps)."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seeded_generator(*key: int) -> torch.Generator:
    """A CPU generator whose state is a pure function of `key`."""
    import torch  # late: preparing data hashes too, and needs no torch

    return torch.Generator().manual_seed(hash_integers(*key) >> 1)
