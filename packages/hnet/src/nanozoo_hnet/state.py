"""What a hierarchy remembers while it decodes.

Shapes: B batch, D a stage's model_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.errors import NanozooError
from nanozoo_hnet.routing import RouterState


@dataclass
class StageState:
    """What one stage remembers while it decodes."""

    encoder: list[Any]
    chunker: RouterState
    smoothed: Tensor  # (B, D) float32: the vector that each row's current chunk holds
    inner: Any  # StageState, or the list of the main network
    decoder: list[Any]

    @property
    def num_bytes(self) -> int:
        inner = [self.inner] if isinstance(self.inner, StageState) else self.inner
        return self.smoothed.nbytes + sum(
            state.num_bytes for state in [*self.encoder, self.chunker, *inner, *self.decoder]
        )


@dataclass
class HNetCache:
    """The decoding state of a model; rows may differ in length and in their chunks."""

    state: StageState
    lengths: Tensor  # (B,) int64: tokens read
    is_empty: bool = True

    @property
    def num_bytes(self) -> int:
        return self.state.num_bytes

    def crop(self, lengths: Tensor) -> None:
        """Raises: NanozooError unless `lengths` (B,) are the present ones."""
        if not torch.equal(lengths.to(self.lengths), self.lengths):
            raise NanozooError(
                "hnet cannot forget tokens it has read: its recurrent states keep no history; "
                "start again with prefill"
            )
