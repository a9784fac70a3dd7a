"""Decoding: a step of the global model per patch, one of the local model per byte.

The state of the local model is that of the open patch alone, dropped when the next one begins. To
be cut back to an earlier patch, a cache keeps the tokens and reads those behind the border again.

B rows, R some of them, P bytes per patch, G global_byte_dim, L local_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nanozoo_megabyte.model import Megabyte


class MegabyteCache:
    """What has been read; rows may differ in length and in where their patches begin.

    `lengths` (B,) tokens belong to each row, the first `read` (B,) of which the two models have
    taken in. The rest, after a cut at most some patches, is read before the next token.
    """

    def __init__(self, model: Megabyte, batch_size: int, max_length: int) -> None:
        config, size = model.config, model.patch_size
        device = model.global_pad.device
        # What a patch sees of the one before was made with what that one saw of its own past, one
        # patch further in each layer.
        self.size, self.overlap = size, config.cross_patch
        self.replayed = config.size("num_local_layers") if self.overlap else 0
        self.tokens = torch.zeros(batch_size, max_length, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.read = torch.zeros_like(self.lengths)
        self.patches = model.global_model.init_cache(batch_size, -(-max_length // size))
        self.bytes = model.local_model.init_cache(batch_size, self.overlap + size)
        self.conditions = model.conditions(
            model.global_pad.new_zeros(batch_size, config.global_dim)
        )
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


def read_on(model: Megabyte, tokens: Tensor, cache: MegabyteCache) -> Tensor:
    """Features (B, S, L) of S more tokens of every row."""
    first = cache.lengths
    cache.add(tokens)
    if cache.is_empty:
        cache.is_empty = False
        features = model.encode(tokens, cache)
        cache.read = cache.lengths
        cache.crop(cache.lengths)
        return features
    features = cache.conditions.new_zeros(*tokens.shape, cache.conditions.shape[-1])
    while True:
        behind = cache.read < cache.lengths
        rows = behind.nonzero()[:, 0]
        if not len(rows):
            return features
        at = cache.read[rows] - first[rows]
        y = read_one(model, cache, rows)  # (R, L)
        features[rows[at >= 0], at[at >= 0]] = y[at >= 0]


def read_one(model: Megabyte, cache: MegabyteCache, rows: Tensor) -> Tensor:
    """Takes in the next token of some rows -> features (R, L)."""
    position = cache.read[rows]
    begins = position % model.patch_size == 0
    if bool(begins.any()):
        starting = rows[begins]
        cache.begin_patches(starting)
        read_patch(model, cache, starting, position[begins] // model.patch_size)
    token = cache.tokens[rows, position]
    past = model.local_embedding(token)
    past = torch.where(
        begins[:, None], model.first_inputs(past, position // model.patch_size), past
    )
    a = cache.conditions[rows, position % model.patch_size] + past  # (R, L)
    angles = model.local_angles(position[:, None])
    features = model.local_model(
        a[:, None], angles, cache=cache.bytes, rows=_unless_all(rows, cache)
    )
    cache.read = cache.read.index_add(0, rows, torch.ones_like(rows))
    return features[:, 0]


def read_patch(model: Megabyte, cache: MegabyteCache, rows: Tensor, patches: Tensor) -> None:
    """One step of the global model, for rows at which patch number `patches` (R,) begins."""
    size = model.patch_size
    u = model.global_pad.expand(len(rows), -1)
    later = patches > 0
    if bool(later.any()):
        reach = 0 if model.convolutions is None else model.convolutions.reach
        steps = torch.arange(-reach, size, device=rows.device)
        positions = (patches[later, None] - 1) * size + steps  # of the patch before, and its past
        tokens = cache.tokens[rows[later, None], (positions + 1).clamp(min=0)]
        e = model.embed_bytes(tokens, positions.clamp(min=0))
        e = e.masked_fill((positions < 0)[..., None], 0.0)
        u = u.to(e.dtype).index_copy(
            0, later.nonzero()[:, 0], model.convolve(e)[:, reach:].flatten(1)
        )
    o = model.global_model(
        u[:, None],
        model.global_angles(patches[:, None]),
        cache=cache.patches,
        rows=_unless_all(rows, cache),
    )
    cache.conditions = cache.conditions.index_copy(
        0, rows, model.conditions(o[:, 0]).to(cache.conditions)
    )


def _unless_all(rows: Tensor, cache: MegabyteCache) -> Tensor | None:
    return None if len(rows) == len(cache.lengths) else rows
