"""What a Mamba mixer remembers of a sequence.

Shapes: B batch, L sequence, C channels of the convolution, K its width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MixerState:
    """A forward pass or step that is given it replaces its parts."""

    conv: Tensor  # (B, C, K - 1): the last inputs of the convolution, oldest first
    ssm: Tensor  # (B, ...) float32: the state of the scan

    @property
    def num_bytes(self) -> int:
        return self.conv.nbytes + self.ssm.nbytes

    def take(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both parts, of all rows or of some."""
        if rows is None:
            return self.conv, self.ssm
        return self.conv[rows], self.ssm[rows]

    def put(self, rows: Tensor | None, conv: Tensor, ssm: Tensor) -> None:
        """Replaces both parts, of all rows or of some."""
        if rows is None:
            self.conv, self.ssm = conv, ssm
        else:
            self.conv.index_copy_(0, rows, conv)
            self.ssm.index_copy_(0, rows, ssm)

    def read_inputs(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """The K - 1 inputs that end at each row's last valid position, (B, C, K - 1), after
        `inputs` (B, L, C) of which the first `lengths` (B,) are valid; None is all."""
        width = self.conv.shape[-1]
        history = torch.cat([self.conv.mT, inputs.to(self.conv.dtype)], dim=1)  # (B, K - 1 + L, C)
        if lengths is None:
            return history[:, history.shape[1] - width :].mT
        window = lengths[:, None] + torch.arange(width, device=lengths.device)  # (B, K - 1)
        return history.gather(1, window[..., None].expand(-1, -1, history.shape[-1])).mT
