"""What decoding keeps: the global model takes a step per patch, the local model one per byte.

The state of the local model is that of the open patch alone, dropped when the next one begins. To
be cut back to an earlier patch, a cache keeps the tokens and reads those behind the border again.

B rows, R some of them, P bytes per patch, L local_dim, H heads, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.nn.cache import KVCache


class MegabyteCache:
    """What has been read; rows may differ in length and in where their patches begin.

    `lengths` (B,) tokens belong to each row, the first `read` (B,) of which the two models have
    taken in. The rest, after a cut at most some patches, is read before the next token.
    """

    def __init__(
        self,
        patches: KVCache,
        in_patch: KVCache,
        conditions: Tensor,
        *,
        max_length: int,
        patch_size: int,
        overlap: int,
    ) -> None:
        """
        Args:
            patches, in_patch: empty, of the global model and of the local one.
            conditions: (B, P, L), what the local model adds to the bytes of each row's open patch.
            max_length: tokens that a row may have.
            overlap: bytes of the patch before that the local model sees.
        """
        batch_size, device = conditions.shape[0], conditions.device
        self.patches, self.bytes, self.conditions = patches, in_patch, conditions
        self.size, self.overlap = patch_size, overlap
        # What a patch sees of the one before was made with what that one saw of its own past, one
        # patch further in each layer.
        self.replayed = in_patch.keys.shape[0] if overlap else 0
        self.tokens = torch.zeros(batch_size, max_length, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.read = torch.zeros_like(self.lengths)
        self.is_empty = True

    @property
    def num_bytes(self) -> int:
        own = (self.tokens, self.lengths, self.read, self.conditions)
        return self.patches.num_bytes + self.bytes.num_bytes + sum(x.nbytes for x in own)

    def add(self, tokens: Tensor) -> None:
        """Puts tokens (B, S) at the end of each row, not read yet.

        Raises: ValueError when a row would grow past the cache's length.
        """
        positions = self.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        room, needed = self.tokens.shape[1], int(positions.max()) + 1
        if needed > room:
            raise ValueError(f"the cache holds {room} tokens per row; {needed} are asked")
        self.tokens.scatter_(1, positions, tokens)
        self.lengths = self.lengths + tokens.shape[1]

    def crop(self, lengths: Tensor) -> None:
        """Forgets all but the first `lengths` (B,) tokens of each row."""
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths))
        border = (self.read - 1).clamp(min=0) // self.size * self.size  # where the open patch began
        # A text read whole has left no state of its bytes.
        inside = (self.lengths > border) & (self.bytes.lengths >= self.read - border)
        back = (self.lengths // self.size - self.replayed).clamp(min=0) * self.size
        read = torch.where(inside, torch.minimum(self.read, self.lengths), back)
        kept = self.bytes.lengths - (self.read - read)
        self.bytes.crop(torch.where(inside, kept, torch.zeros_like(kept)))
        self.read = read
        self.patches.crop(-(-read // self.size))

    def begin_patches(self, rows: Tensor) -> None:
        """Drops the bytes of a patch that is full, but for what the next one sees of it."""
        lengths = self.bytes.lengths[rows]
        kept = lengths.clamp(max=self.overlap)
        if self.overlap:
            steps = torch.arange(self.overlap, device=rows.device)
            index = ((lengths - kept)[:, None] + steps).clamp(max=self.bytes.keys.shape[3] - 1)
            for store in (self.bytes.keys, self.bytes.values):
                tails = store.transpose(2, 3)[:, rows[:, None], index]  # (layers, R, overlap, H, K)
                store[:, rows, :, : self.overlap] = tails.transpose(2, 3)
        self.bytes.crop(self.bytes.lengths.index_copy(0, rows, kept))

    def unless_all(self, rows: Tensor) -> Tensor | None:
        """`rows`, or None where they are all."""
        return None if len(rows) == len(self.lengths) else rows
