"""A cache that mixes kinds, each layer with the state that it needs; and a state for windows, which
does not grow with the text.

B rows, Hk key and value heads, W window, T new tokens, K head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nanozoo_core.errors import NanozooError
from nanozoo_core.nn.attention import attend, sdpa


class LayerState(Protocol):
    """What a layer remembers: a `WindowState`, a `MixerState`, or a kind of the model's own."""

    @property
    def num_bytes(self) -> int: ...


State = TypeVar("State", bound=LayerState)


@dataclass
class LayeredCache(Generic[State]):
    """One state for each layer, of any kind. A forward pass that is given it lets every layer
    replace its own and then calls `advance`; the model says `reads_lengths = True`, since what a
    state has left behind cannot come back."""

    states: Sequence[State]
    lengths: Tensor  # (B,) int64: tokens read

    @property
    def num_bytes(self) -> int:
        return sum(state.num_bytes for state in self.states)

    def positions(self, num_tokens: int) -> Tensor:
        """(B, T): the positions that the next `num_tokens` tokens of each row will have."""
        return self.lengths[:, None] + torch.arange(num_tokens, device=self.lengths.device)

    def advance(self, num_tokens: int | Tensor) -> None:
        """Counts the tokens just read: an int, or one number per row, (B,)."""
        self.lengths = self.lengths + num_tokens

    def crop(self, lengths: Tensor) -> None:
        """Raises: NanozooError unless `lengths` (B,) are the present ones."""
        if not torch.equal(lengths.to(self.lengths), self.lengths):
            raise NanozooError(
                "this model cannot forget tokens it has read: its states keep no history; start "
                "again with prefill"
            )


@dataclass
class WindowState:
    """The keys and values of the last W tokens of every row, the newest last: all that attention
    with `window=W` can still see, whatever the length of the text."""

    keys: Tensor  # (B, Hk, W, K)
    values: Tensor  # (B, Hk, W, K)

    @classmethod
    def empty(
        cls, batch_size: int, window: int, num_kv_heads: int, head_dim: int, *,
        device: torch.device, dtype: torch.dtype = torch.float32,
    ) -> WindowState:  # fmt: skip
        # Zeros, not empty: a masked-out NaN would still poison the weighted sum.
        shape = (batch_size, num_kv_heads, window, head_dim)
        return cls(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @torch.no_grad()
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Attends causally from q (B, H, T, K) over the last W tokens besides a query's own, and
        remembers k, v (B, Hk, T, K).

        Args:
            past: (B,) tokens read before these.
            lengths: (B,) valid ones among the new tokens of right-padded rows; None is all.

        Returns: (B, H, T, K); outputs behind a row's end mean nothing.
        """
        window, num_tokens = self.keys.shape[2], q.shape[2]
        keys = torch.cat([self.keys, k.to(self.keys.dtype)], dim=2)  # (B, Hk, W + T, K)
        values = torch.cat([self.values, v.to(self.values.dtype)], dim=2)
        if lengths is None:
            self.keys, self.values = keys[:, :, num_tokens:], values[:, :, num_tokens:]
        else:
            last = lengths[:, None] + torch.arange(window, device=q.device)  # (B, W)
            index = last[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            self.keys, self.values = keys.gather(2, index), values.gather(2, index)
        if num_tokens > window and not past.any():
            return attend(q, k, v, window=window)  # of nothing but these, in blocks
        steps = torch.arange(window + num_tokens, device=q.device)
        behind = steps[window:, None] - steps  # (T, W + T): query minus key position
        is_there = steps >= window - past[:, None]  # (B, W + T)
        mask = ((behind >= 0) & (behind <= window)) & is_there[:, None]  # (B, T, W + T)
        return sdpa(q, keys.to(q.dtype), values.to(q.dtype), mask=mask[:, None])
