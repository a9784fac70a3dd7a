"""Decoding state: keys and values of every token for full blocks, of chosen tokens for routed ones.

B rows, Hk key and value heads, S room for tokens, N new tokens of a row at most, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.nn.attention import sdpa
from nanozoo_core.nn.cache import KVCache


class SelectedCache:
    """What one routed block keeps: keys and values of the tokens it read, packed, each with its
    position in the text. Rows hold different numbers of them; room grows as they come."""

    def __init__(self, like: KVCache, room: int) -> None:
        self.entries = _empty_like(like, room)
        self.positions = torch.zeros(
            like.lengths.shape[0], room, dtype=torch.int64, device=like.lengths.device
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return self.entries.num_bytes

    def make_room(self, positions: Tensor, rows: Tensor) -> KVCache:
        """Notes the positions (R, N) of the next tokens of some rows, and returns where their keys
        and values go."""
        num_tokens = positions.shape[1]
        self._reserve(int(self.entries.lengths[rows].max()) + num_tokens)
        slots = self.entries.positions(num_tokens, rows)  # (R, N)
        self.positions[rows[:, None], slots] = positions
        return self.entries

    def crop(self, lengths: Tensor) -> None:
        """Forgets the tokens at positions from `lengths` (B,) on."""
        slots = torch.arange(self.positions.shape[1], device=self.positions.device)
        held = slots < self.entries.lengths[:, None]  # (B, S)
        held &= self.positions < lengths.to(self.positions)[:, None]
        self.entries.crop(held.sum(1))  # positions ascend along a row

    def _reserve(self, room: int) -> None:
        old = self.entries
        if room <= old.max_length:
            return
        room = max(room, 2 * old.max_length)
        self.entries = _empty_like(old, room)
        self.entries.keys[:, :, :, : old.max_length] = old.keys
        self.entries.values[:, :, :, : old.max_length] = old.values
        self.entries.advance(old.lengths)
        added = room - old.max_length
        self.positions = torch.nn.functional.pad(self.positions, (0, added))


def _empty_like(cache: KVCache, room: int) -> KVCache:
    """Room for one layer with the rows and heads of another cache."""
    _, batch_size, num_kv_heads, _, head_dim = cache.keys.shape
    return KVCache(
        1,
        batch_size,
        room,
        num_kv_heads,
        head_dim,
        device=cache.keys.device,
        dtype=cache.keys.dtype,
    )


class MoDCache:
    """The state of a whole model: one KVCache for the full blocks, which also counts the text, and
    a SelectedCache for each routed one."""

    def __init__(self, full: KVCache, num_routed: int, room: int) -> None:
        self.full = full
        self.routed = [SelectedCache(full, room) for _ in range(num_routed)]

    @property
    def lengths(self) -> Tensor:
        """(B,): tokens of text read so far."""
        return self.full.lengths

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return self.full.num_bytes + sum(cache.num_bytes for cache in self.routed)

    def positions(self, num_tokens: int) -> Tensor:
        """(B, T): the positions of the next tokens."""
        return self.full.positions(num_tokens)

    def advance(self, num_tokens: int) -> None:
        self.full.advance(num_tokens)

    def crop(self, lengths: Tensor) -> None:
        """Forgets all but the first `lengths` (B,) tokens of each row."""
        self.full.crop(lengths)
        for cache in self.routed:
            cache.crop(lengths)


class SelectedKeys:
    """Stands in for a cache where a block computes all tokens: keys outside `keep` (B, T) are
    hidden, except that a token always sees itself, so that no row of the softmax is empty."""

    def __init__(self, keep: Tensor) -> None:
        length = keep.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=keep.device)
        self.mask = (keep[:, None, None, :] & causal) | itself  # (B, 1, T, T)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        return sdpa(q, k, v, mask=self.mask)
