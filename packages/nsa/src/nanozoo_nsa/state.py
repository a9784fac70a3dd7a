"""What decoding keeps of one NSA layer, and attention of one position over it.

Keys and values of every position for selected blocks; a ring of the last w for the window; the
compressed ones; and a ring of the last l that are yet to be compressed. Rings have room for a few
positions more, so that the last ones can be taken back.

B rows, R of them, Hk key and value heads, G query heads of each, K head_dim, S room for positions,
W room for compressed blocks, n blocks of a query, C tokens of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.precision import finest_dtype, wide_dtype
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.choice import all_blocks, chosen_by

SPARE = 16  # positions that can be taken back

Pair = tuple[Tensor, Tensor]


class NSAState:
    """Rows may differ in length. No gradient flows.

    `lengths` (B,) counts the positions of each row.
    """

    def __init__(
        self,
        grid: Grid,
        window_size: int,
        batch_size: int,
        max_length: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.grid, self.window_size = grid, window_size
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)

        def room(size: int) -> Tensor:
            # Zeros, not empty: a masked-out NaN would still poison the weighted sum.
            shape = (2, batch_size, num_kv_heads, size, head_dim)
            return torch.zeros(shape, device=device, dtype=dtype)

        # Whole blocks, so that a block of keys is one slice. Each holds keys, then values.
        self.selected = room(grid.num_blocks(max(max_length, 1)) * grid.block)
        self.compressed = room(grid.num_windows(self.max_length))
        self.window = room(min(window_size + SPARE, self.max_length))
        self.raw = room(grid.window + SPARE)
        self._most = 0  # no row is longer; known without asking the device

    @property
    def max_length(self) -> int:
        """Positions that there is room for."""
        return self.selected.shape[3]

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(x.nbytes for x in (self.selected, self.compressed, self.window, self.raw))

    def make_room(self, num_positions: int) -> None:
        """Sees to it that every row can take `num_positions` more."""
        if self._most + num_positions > self.max_length:
            self._most = int(self.lengths.max())
        self._most += num_positions
        if self._most <= self.max_length:
            return
        length = max(self._most, self.max_length + self.max_length // 2)
        length = self.grid.num_blocks(length) * self.grid.block
        if self.window.shape[3] < self.window_size + SPARE:
            # A ring that never turned is a prefix, and stays one in a larger ring.
            size = min(self.window_size + SPARE, length)
            self.window = _grown(self.window, size)
        self.selected = _grown(self.selected, length)
        self.compressed = _grown(self.compressed, self.grid.num_windows(length))

    def fill(self, kept: Sequence[Tensor], lengths: Tensor | None) -> None:
        """Puts in what a forward pass over right-padded rows made; the state was empty.

        Args: kept: selected, window and raw keys and values (B, Hk, L, K), then the compressed.
        """
        assert self._most == 0, "only an empty state can be filled"
        length = kept[0].shape[2]
        self.make_room(length)
        if lengths is None:
            lengths = torch.full_like(self.lengths, length)
        self.lengths = lengths.to(self.lengths, copy=True)
        pairs = [torch.stack([kept[i], kept[i + 1]]).detach() for i in (0, 2, 4, 6)]
        self.selected[..., :length, :] = pairs[0]
        self.compressed[..., : pairs[3].shape[3], :] = pairs[3]
        for ring, pair in ((self.window, pairs[1]), (self.raw, pairs[2])):
            index = self._ring_positions(ring, self.lengths).clamp(min=0)  # (B, size)
            index = index[None, :, None, :, None].expand(ring.shape)
            ring.copy_(pair.gather(3, index))

    def append(self, rows: Tensor, selected: Pair, window: Pair, raw: Pair) -> None:
        """One position of each of `rows` (R,): keys and values (R, Hk, 1, K)."""
        self.make_room(1)
        positions = self.lengths[rows]
        for store, (k, v) in (
            (self.selected, selected),
            (self.window, window),
            (self.raw, raw),
        ):
            slots = positions % store.shape[3]
            store[0][rows, :, slots] = k[:, :, 0].to(store.dtype)
            store[1][rows, :, slots] = v[:, :, 0].to(store.dtype)
        self.lengths = self.lengths.index_add(0, rows, torch.ones_like(rows))

    def last_window(self, rows: Tensor) -> Pair:
        """The last l positions of `rows` (R,) that are to be compressed, (R, Hk, l, K) each."""
        steps = torch.arange(-self.grid.window, 0, device=rows.device)
        slots = (self.lengths[rows, None] + steps) % self.raw.shape[3]  # (R, l)
        k, v = (x[rows[:, None], :, slots].transpose(1, 2) for x in self.raw)
        return k, v

    def append_compressed(self, rows: Tensor, blocks: Tensor, pair: Pair) -> None:
        """Block number `blocks` (R,) of `rows` (R,): key and value (R, Hk, 1, K)."""
        for store, new in zip(self.compressed, pair, strict=True):
            store[rows, :, blocks] = new[:, :, 0].to(store.dtype)

    def crop(self, lengths: Tensor) -> None:
        """Forgets all but the first `lengths` (B,) positions, at most SPARE of them.

        Raises: ValueError for more: the rings no longer hold what came before.
        """
        lengths = torch.minimum(self.lengths, lengths.to(self.lengths))
        back = int((self.lengths - lengths).max()) if len(lengths) else 0
        if back > SPARE and not bool((lengths == 0).all()):
            raise ValueError(f"{back} positions cannot be taken back; at most {SPARE} can")
        self.lengths = lengths
        self._most = int(lengths.max()) if len(lengths) else 0

    @staticmethod
    def _ring_positions(ring: Tensor, lengths: Tensor) -> Tensor:
        """(R, size): the last position before `lengths` (R,) that each slot can hold; below 0 where
        it holds none."""
        slots = torch.arange(ring.shape[3], device=lengths.device)
        last = lengths[:, None] - 1
        return last - (last - slots) % ring.shape[3]

    def window_mask(self, rows: Tensor) -> Tensor:
        """(R, size) bool: which slots of the window's ring the last position of `rows` sees."""
        lengths = self.lengths[rows]
        positions = self._ring_positions(self.window, lengths)
        return (positions >= 0) & (positions >= lengths[:, None] - self.window_size)


def attend_step(
    state: NSAState, rows: Tensor, q: Tensor, q_compressed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The three attentions of the last position of each of `rows` (R,), (R, Hk, G, K) each.

    Args: q, q_compressed: (R, Hk, G, K).
    """
    grid = state.grid
    positions = state.lengths[rows] - 1  # (R,)
    longest = state._most
    visible = ((positions + 1 - grid.window).div(grid.stride, rounding_mode="floor") + 1)[:, None]
    keys, values = (x[rows, :, : grid.num_windows(longest)].to(q.dtype) for x in state.compressed)
    is_visible = torch.arange(keys.shape[2], device=q.device) < visible  # (R, W)
    fine_q = q_compressed.to(finest_dtype(q.device))  # as `chosen_by` asks
    compressed, probs = _attend(fine_q, keys, values, is_visible[:, None])

    chosen = chosen_by(probs, positions[:, None], grid, grid.num_blocks(longest))
    blocks = all_blocks(chosen, positions[:, None], grid).long()
    index, places = _block_rows(state, rows, blocks)
    keys, values = (x.flatten(0, 2)[index].to(q.dtype) for x in state.selected)
    seen = (blocks >= 0).repeat_interleave(grid.block, -1) & (places <= positions[:, None, None])
    selected, _ = _attend(q, keys, values, seen)

    keys, values = (x[rows].to(q.dtype) for x in state.window)
    window, _ = _attend(q, keys, values, state.window_mask(rows)[:, None])
    return compressed.to(q.dtype), selected, window


def _block_rows(state: NSAState, rows: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(R, Hk, n C): where the tokens of `blocks` (R, Hk, n) lie among all B Hk S keys, and their
    positions."""
    heads = torch.arange(blocks.shape[1], device=rows.device)
    first = (rows[:, None] * len(heads) + heads) * state.max_length  # (R, Hk)
    steps = torch.arange(state.grid.block, device=rows.device)
    places = (blocks.clamp(min=0)[..., None] * state.grid.block + steps).flatten(2)
    return first[..., None] + places, places


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of q (R, Hk, G, K) over k, v (R, Hk, keys, K) where `mask` (R, Hk, keys) holds, and
    its probabilities, float32 at least; zeros where it holds nowhere."""
    wide = wide_dtype(q)
    scores = (q.to(wide) @ k.to(wide).mT) / math.sqrt(q.shape[-1])  # (R, Hk, G, keys)
    scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
    probs = scores.softmax(-1).nan_to_num(0.0) if k.shape[2] else scores
    return (probs @ v.to(wide)).to(q.dtype), probs


def _grown(store: Tensor, size: int) -> Tensor:
    return F.pad(store, (0, 0, 0, size - store.shape[3]))
