"""What a Mamba mixer remembers of a sequence, and what the mixers of both variants do alike.

Shapes: B batch, L sequence, D model_dim, C channels of the convolution, K its width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanozoo_core.ops.causal_conv import causal_conv1d, causal_conv1d_step


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


class RecurrentMixer(nn.Module):
    """A short causal convolution and a scan behind it: the part that both variants share.

    A subclass sets `conv`, which holds the weights (C, 1, K) and the biases only.
    """

    conv: nn.Conv1d

    def forward(
        self, u: Tensor, state: MixerState | None = None, lengths: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Mixes a whole sequence.

        Args:
            u: (B, L, D).
            state: where to start from; afterwards it is the state behind each row's end.
            lengths: (B,) valid positions of right-padded rows, needed only with `state`; outputs
                behind a row's end mean nothing.
            segments: (B, L) integers; nothing passes where the number changes.
        """
        raise NotImplementedError

    def step(self, u: Tensor, state: MixerState, rows: Tensor | None = None) -> Tensor:
        """One position, (B, D) -> (B, D), replacing `state`. With `rows` (R,) only these rows of
        the state take part, and u and the result have R rows."""
        raise NotImplementedError

    def scan_shape(self) -> tuple[int, ...]:
        """Shape of the scan's state for one row."""
        raise NotImplementedError

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> MixerState:
        """The state before the first position; `dtype` is that of the convolution's inputs."""
        channels, _, width = self.conv.weight.shape
        shape = (batch_size, *self.scan_shape())
        return MixerState(
            conv=torch.zeros(batch_size, channels, width - 1, device=device, dtype=dtype),
            ssm=torch.zeros(shape, device=device, dtype=torch.float32),
        )

    def convolve(self, inputs: Tensor, state: MixerState | None, segments: Tensor | None) -> Tensor:
        """silu(conv(inputs)), (B, L, C) -> the same, behind what `state` remembers."""
        return causal_conv1d(
            inputs,
            self.conv.weight.squeeze(1),
            self.conv.bias,
            initial_state=None if state is None else state.conv,
            segments=segments,
        )

    def convolve_step(self, conv: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """One position, (B, C), behind `conv` (B, C, K - 1) -> the same, and the new `conv`."""
        return causal_conv1d_step(conv, inputs, self.conv.weight.squeeze(1), self.conv.bias)


@torch.no_grad()
def init_step_bias(bias: Tensor, delta_range: tuple[float, float], floor: float) -> None:
    """Sets a bias in front of a softplus so that step sizes start log-uniform over their range, and
    not below `floor`. Reference: arXiv 2312.00752, section 3.6."""
    low, high = (math.log(bound) for bound in delta_range)
    delta = bias.uniform_(low, high).exp_().clamp_(min=floor)
    bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
