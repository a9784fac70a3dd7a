"""The control decoder with Native Sparse Attention.

B batch, T sequence, D model_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.nn.control import ControlModel, init_input_matrix
from nanozoo_core.nn.feed_forward import ReluSquared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.mixer import NSAMixer, Routing
from nanozoo_nsa.state import NSAState


class NSACache:
    """A decoding state for every block."""

    def __init__(self, states: Sequence[NSAState]) -> None:
        self.states = list(states)

    @property
    def lengths(self) -> Tensor:
        """(B,): tokens read so far."""
        return self.states[0].lengths

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(state.num_bytes for state in self.states)

    def crop(self, lengths: Tensor) -> None:
        """Forgets all but the first `lengths` (B,) tokens of each row."""
        for state in self.states:
            state.crop(lengths)


class NSABlock(nn.Module):
    """The control block with another attention."""

    def __init__(self, config: NSAConfig) -> None:
        super().__init__()
        self.attention = NSAMixer(config)
        self.mlp = ReluSquared(config.model_dim, config.mlp_dim)
        init_input_matrix(self.mlp.up.weight)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(
        self, x: Tensor, state: NSAState | None = None, lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:  # fmt: skip
        """The stream (B, T, D) after the block, and what its positions read."""
        attended, routing = self.attention.mix(rms_norm(x), state, lengths, documents)
        return x + (attended + self.mlp(rms_norm(x + attended))), routing

    def step(self, x: Tensor, state: NSAState) -> Tensor:
        """One position of every row, (B, D) -> (B, D)."""
        attended = self.attention.step(rms_norm(x), state)
        return x + (attended + self.mlp(rms_norm(x + attended)))


class NSA(ControlModel):
    """The control, whose blocks attend sparsely."""

    config: NSAConfig

    def __init__(self, config: NSAConfig) -> None:
        super().__init__(config, block=lambda _: NSABlock(config))
        self.num_kv_heads = config.num_kv_heads

    def encode(
        self,
        tokens: Tensor,
        cache: NSACache | None = None,
        *,
        lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """The final normalised stream (B, T, D) for tokens (B, T), and what each block read.

        Args:
            cache: an empty one, to be filled with the first `lengths` (B,) tokens of each row.
            documents: (B, T) numbers; they count only with reset_at_documents.
        """
        if not self.config.reset_at_documents:
            documents = None
        x = rms_norm(self.embedding(tokens))  # (B, T, D)
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            x, routing = block(
                x, None if cache is None else cache.states[layer], lengths, documents
            )
            routings.append(routing)
        return rms_norm(x), routings

    def features(self, tokens: Tensor, cache: NSACache | None = None) -> Tensor:  # type: ignore[override]
        """The final normalised stream (B, T, D) for tokens (B, T); `cache` continues a sequence,
        one token after the other where it is not empty."""
        if cache is None or not bool(cache.lengths.any()):
            return self.encode(tokens, cache)[0]
        columns = []
        for token in tokens.unbind(1):
            x = rms_norm(self.embedding(token))  # (B, D)
            for block, state in zip(self.blocks, cache.states, strict=True):
                assert isinstance(block, NSABlock)
                x = block.step(x, state)
            columns.append(rms_norm(x))
        return torch.stack(columns, dim=1)

    def init_cache(self, batch_size: int, max_length: int) -> NSACache:  # type: ignore[override]
        return NSACache([mixer.empty_state(batch_size, max_length) for mixer in self.mixers()])

    def mixers(self) -> list[NSAMixer]:
        """The attention of every block."""
        return [block.attention for block in self.blocks if isinstance(block, NSABlock)]


Model = NSA
