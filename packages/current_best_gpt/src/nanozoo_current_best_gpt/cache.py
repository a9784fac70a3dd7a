"""Keys and values for decoding: of each layer as many as its window reaches, in a ring.

B rows, H heads, T new tokens, S slots of a layer's ring, K head_dim. Position p lies in slot
p mod S.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPARE = 16  # tokens that may be read at once, and forgotten again, beyond the window


class RingCache:
    """The state of B rows, which may differ in length.

    A forward pass calls `begin`, for each attention layer `write` and then `read` and `mask`, and
    at last `advance`. Tokens read so far are kept whole: from them come bigrams, documents and the
    embedding before.
    """

    def __init__(
        self,
        reaches: dict[int, int],
        batch_size: int,
        max_length: int,
        num_heads: int,
        head_dim: int,
        *,
        separator: int | None,
        resets: bool,
        keeps_apart: bool,
        like: Tensor,
    ) -> None:
        """Args:
        reaches: earlier tokens that a layer's attention may touch, by layer.
        separator: the token that begins a document.
        resets: whether what looks one token back stops at a document's start.
        keeps_apart: whether attention stays within documents.
        like: a tensor whose device and dtype hold for keys and values.
        """
        self.max_length = max_length
        self.separator, self.resets, self.keeps_apart = separator, resets, keeps_apart
        self.sizes = {n: min(max_length, reach + 1 + SPARE) for n, reach in reaches.items()}
        shapes = {n: (batch_size, size, num_heads, head_dim) for n, size in self.sizes.items()}
        # Zeros, not empty: a masked-out NaN would still poison the weighted sum.
        self.keys = {n: like.new_zeros(shape) for n, shape in shapes.items()}
        self.values = {n: like.new_zeros(shape) for n, shape in shapes.items()}
        history = (batch_size, max_length)
        self.tokens = torch.zeros(history, dtype=torch.int64, device=like.device)
        self.separators = torch.zeros(history, dtype=torch.bool, device=like.device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=like.device)
        self.expected: Tensor | None = None
        self._written = self.lengths  # length that each row's rings have seen
        self._masks: dict[tuple[int, int, bool], Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(t.nbytes for store in (self.keys, self.values) for t in store.values())

    @property
    def most_new(self) -> int:
        """Tokens that a filled cache takes at once."""
        return SPARE

    def expect(self, lengths: Tensor) -> None:
        """Of the next tokens only the first `lengths` (B,) of each row are to be kept."""
        self.expected = lengths.to(self.lengths)

    # -- one forward pass -------------------------------------------------------------------------

    def begin(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes note of tokens (B, T).

        Returns: their positions, the token before each (itself where there is none), and whether it
        stands at the start of a row or document, all (B, T).
        Raises: ValueError when a row would grow past `max_length`.
        """
        num_tokens = tokens.shape[1]
        self.counts = torch.full_like(self.lengths, num_tokens)
        if self.expected is not None:
            self.counts = torch.minimum(self.counts, self.expected)
            self.expected = None
        needed = int((self.lengths + self.counts).max())
        if needed > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens per row; {needed} are asked"
            )
        self.is_first = int(self.lengths.max()) == 0
        steps = torch.arange(num_tokens, device=tokens.device)
        self.positions = self.lengths[:, None] + steps  # (B, T)
        kept = steps < self.counts[:, None]
        rows, columns = kept.nonzero(as_tuple=True)
        places = self.positions[rows, columns]
        self.tokens[rows, places] = tokens[rows, columns]
        if self.separator is not None:
            self.separators[rows, places] = (tokens == self.separator)[rows, columns]
        starts = self._starts(self.positions)
        self.documents = self.separators.cumsum(1) if self.keeps_apart else None
        first = self.tokens.gather(1, (self.lengths[:, None] - 1).clamp(min=0))
        before = torch.cat([first, tokens[:, :-1]], dim=1)
        self._masks = {}
        return self.positions, torch.where(self.positions == 0, tokens, before), starts

    @torch.no_grad()
    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts k, v (B, H, T, K) into the ring of a layer, the last of them where they are many."""
        size = self.sizes[layer]
        steps = torch.arange(k.shape[2], device=k.device)
        last = self.counts[:, None] - steps  # (B, T): 1 for a row's last token
        rows, columns = ((last > 0) & (last <= size)).nonzero(as_tuple=True)
        slots = self.positions[rows, columns] % size
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            store[rows, slots] = new.transpose(1, 2)[rows, columns].to(store.dtype)

    def read(self, layer: int, *, shifted: bool) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) in ring order; `shifted` keys have the second half of their
        channels from the token before."""
        keys, values = self.keys[layer], self.values[layer]
        if shifted:
            starts = self._starts(self._slot_positions(layer))  # (B, S)
            rotated, still = keys.chunk(2, dim=-1)
            before = still.roll(1, dims=1)  # the slot before holds the position before
            still = torch.where(starts[:, :, None, None], still, before)
            keys = torch.cat([rotated, still], dim=-1)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def mask(self, layer: int, window: int, *, paired: bool = False) -> Tensor:
        """(B, 1, T, S): which slots each new token sees; with `paired` (B, 1, 2T, 2S), two rows for
        each token and slot, and a window of rows."""
        key = (self.sizes[layer], window, paired)
        if key not in self._masks:
            slots, queries = self._slot_positions(layer), self.positions
            blocked = slots < 0
            if self.documents is not None:
                first = self.documents.gather(1, slots.clamp(min=0))
                second = self.documents.gather(1, queries.clamp(max=self.max_length - 1))
                blocked = blocked[:, None] | (first[:, None] != second[:, :, None])  # (B, T, S)
            else:
                blocked = blocked[:, None].expand(-1, queries.shape[1], -1)
            if paired:
                two = torch.arange(2, device=slots.device)
                slots, queries = (2 * x[..., None] + two for x in (slots, queries))
                slots, queries = slots.flatten(1), queries.flatten(1)
                blocked = blocked.repeat_interleave(2, 1).repeat_interleave(2, 2)
            behind = queries[:, :, None] - slots[:, None]
            self._masks[key] = ((behind >= 0) & (behind <= window) & ~blocked)[:, None]
        return self._masks[key]

    def advance(self) -> None:
        """Counts the tokens just read."""
        self.lengths = self.lengths + self.counts
        self._written = torch.maximum(self._written, self.lengths)

    def _starts(self, positions: Tensor) -> Tensor:
        """Whether nothing stands before the tokens at `positions`, of the same shape."""
        starts = positions == 0
        if self.resets:
            legal = positions.clamp(0, self.max_length - 1)
            starts = starts | self.separators.gather(1, legal)
        return starts

    def _slot_positions(self, layer: int) -> Tensor:
        """(B, S): the position each slot holds, negative where it is empty."""
        size = self.sizes[layer]
        last = (self.lengths + self.counts - 1)[:, None]
        return last - (last - torch.arange(size, device=last.device)) % size

    def crop(self, lengths: Tensor) -> None:
        """Forgets all but the first `lengths` (B,) tokens of each row.

        Raises: ValueError for more than the rings can take back.
        """
        lengths = torch.minimum(self.lengths, lengths.to(self.lengths))
        forgotten = int((self._written - lengths).where(lengths > 0, 0).max())
        smallest = min(self.sizes.values(), default=self.max_length)
        if forgotten > SPARE and int(self._written.max()) > smallest:
            raise ValueError(f"the cache can forget the last {SPARE} tokens; {forgotten} are asked")
        self.lengths = lengths
