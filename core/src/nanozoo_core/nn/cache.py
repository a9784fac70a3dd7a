"""Keys and values of the tokens read so far, for decoding.

L layers, B rows, Hk key and value heads, S room for tokens, T new tokens, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.nn.attention import attend, sdpa


class KVCache:
    """Room for `max_length` tokens of every row, written in place; rows may differ in length.

    A forward pass calls `attend` once per layer, then `advance` once. `rows` (R,) int64 restricts
    a call to some rows, whose tensors then come first: R in the place of B. No gradient flows.
    """

    def __init__(
        self, num_layers: int, batch_size: int, max_length: int, num_kv_heads: int, head_dim: int,
        *, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        shape = (num_layers, batch_size, num_kv_heads, max_length, head_dim)
        # Zeros, not empty: a masked-out NaN would still poison the weighted sum.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.max_length = max_length
        # Known on the host, so that the common case needs no mask and no wait for the device.
        self._longest = 0
        self._is_even = True  # all rows are equally long

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def positions(self, num_tokens: int, rows: Tensor | None = None) -> Tensor:
        """(B, T): the positions that the next `num_tokens` tokens of each row will have."""
        lengths = self.lengths if rows is None else self.lengths[rows]
        return lengths[:, None] + torch.arange(num_tokens, device=lengths.device)

    @torch.no_grad()
    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *,
        window: int | None = None, rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Writes k, v (B, Hk, T, K) at the end of each row and attends causally from q (B, H, T, K)
        over the row's past and the new tokens.

        Args: window: how many earlier positions a query sees besides its own; None is all.
        Returns: (B, H, T, K).
        Raises: ValueError when a row would grow past `max_length`.
        """
        num_tokens = q.shape[2]
        self._check_room(num_tokens, rows)
        if rows is None and self._is_even:
            start, end = self._longest, self._longest + num_tokens
            self.keys[layer, :, :, start:end] = k
            self.values[layer, :, :, start:end] = v
            if start == 0:
                return attend(q, k, v, window=window)
            first = 0 if window is None else max(0, start - window)
            past = self.keys[layer, :, :, first:end], self.values[layer, :, :, first:end]
            return attend(q, past[0].to(q.dtype), past[1].to(q.dtype), window=window)

        positions = self.positions(num_tokens, rows)  # (B, T)
        index = torch.arange(q.shape[0], device=q.device) if rows is None else rows
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            store.transpose(1, 2)[index[:, None], positions] = new.transpose(1, 2).to(store.dtype)
        end = min(self._longest + num_tokens, self.max_length)
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        if rows is not None:
            keys, values = keys[rows], values[rows]
        behind = positions[:, :, None] - torch.arange(end, device=q.device)  # (B, T, end)
        mask = behind >= 0 if window is None else (behind >= 0) & (behind <= window)
        return sdpa(q, keys.to(q.dtype), values.to(q.dtype), mask=mask[:, None])

    def advance(self, num_tokens: int | Tensor, rows: Tensor | None = None) -> None:
        """Counts the tokens just written: an int, or one number per row, (B,)."""
        if rows is None and isinstance(num_tokens, int):
            self.lengths = self.lengths + num_tokens
            self._longest += num_tokens
            return
        if rows is None:
            self.lengths = self.lengths + num_tokens
        else:
            added = torch.as_tensor(num_tokens, device=rows.device).expand(rows.shape)
            self.lengths = self.lengths.index_add(0, rows, added)
        self._measure()

    def crop(self, lengths: Tensor) -> None:
        """Forgets all but the first `lengths` (B,) tokens of each row."""
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths))
        self._measure()

    def _measure(self) -> None:
        lengths = self.lengths.tolist()
        self._longest = max(lengths, default=0)
        self._is_even = min(lengths, default=0) == self._longest

    def _check_room(self, num_tokens: int, rows: Tensor | None) -> None:
        needed = self._longest + num_tokens
        if needed > self.max_length and rows is not None:
            needed = max(self.lengths[rows].tolist(), default=0) + num_tokens
        if needed > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens per row; {needed} are asked"
            )
