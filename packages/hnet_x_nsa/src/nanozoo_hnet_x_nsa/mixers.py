"""The mixer behind the letter n.

Shapes: B batch, L positions of the stage, D its model_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_hnet_x_nsa.config import HNetXNSAConfig
from nanozoo_nsa.mixer import NSAMixer, Routing
from nanozoo_nsa.state import NSAState


class SparseAttention(NSAMixer):
    """NSA over the positions of a stage: blocks, window and angles count its own steps."""

    watcher: Callable[[Routing], object] | None = None  # told what was read, for inspection

    def __init__(self, config: HNetXNSAConfig, stage: int) -> None:
        super().__init__(config.nsa(stage))

    def forward(
        self, x: Tensor, state: NSAState | None = None, lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        length = x.shape[1]
        if torch.is_grad_enabled() and state is None:
            x, documents = self._with_a_block(x, documents)
        y, routing = self.mix(x, state, lengths, documents)
        if self.watcher is not None:
            self.watcher(routing)
        return y[:, :length]

    def _with_a_block(self, x: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Pads x so that one compressed block is complete, which no real position sees: processes
        that train together must use the same parameters, however few chunks each has found."""
        if documents is None:
            return F.pad(x, (0, 0, 0, max(0, self.grid.window - x.shape[1]))), None
        padded = F.pad(x, (0, 0, 0, self.grid.window))
        return padded, F.pad(documents, (0, self.grid.window), value=-1)
