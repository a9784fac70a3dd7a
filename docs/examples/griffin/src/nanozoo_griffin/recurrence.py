"""The recurrent block of Griffin: a short convolution and the RG-LRU, beside a gate.

B batch, T sequence, D model_dim, R recurrent_dim, K conv_kernel.
Reference: arXiv 2402.19427, sections 2.3 and 2.4.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.nn.block_diagonal import BlockDiagonalLinear
from nanozoo_core.nn.mixer_state import MixerState
from nanozoo_core.ops.backend import valid_positions
from nanozoo_core.ops.causal_conv import causal_conv1d
from nanozoo_core.ops.linear_recurrence import linear_recurrence
from nanozoo_griffin.config import GriffinConfig

POWER = 8.0  # c of equation 3
DECAYS = (0.9, 0.999)  # a^c at the start, uniform


class RGLRU(nn.Module):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t), with a_t = a^(c r_t) (equations 1 to 4)."""

    def __init__(self, dim: int, num_blocks: int) -> None:
        super().__init__()
        self.recurrence_gate = BlockDiagonalLinear(dim, num_blocks)
        self.input_gate = BlockDiagonalLinear(dim, num_blocks)
        self.decay = nn.Parameter(torch.empty(dim))  # Lambda: a = sigmoid(Lambda)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """decay: a^c ~ U(0.9, 0.999)."""
        a = self.decay.uniform_(*DECAYS).pow_(1 / POWER)
        self.decay.copy_(a.log() - torch.log1p(-a))

    def forward(
        self, x: Tensor, initial: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, R) -> the same, and the state (B, R) behind each row's end; `lengths` (B,) are the
        valid positions of right-padded rows."""
        dtype = wide_dtype(x)
        r = torch.sigmoid(self.recurrence_gate(x)).to(dtype)
        i = torch.sigmoid(self.input_gate(x)).to(dtype)
        log_a = -POWER * r * F.softplus(-self.decay.to(dtype))  # log sigmoid(Lambda) = -softplus
        inputs = torch.sqrt(-torch.expm1(2 * log_a)) * (i * x.to(dtype))
        if lengths is not None:  # a position behind the end keeps the state
            valid = valid_positions(x, lengths)[..., None]
            log_a, inputs = log_a * valid, inputs * valid
        states, last = linear_recurrence(log_a.exp(), inputs, initial_state=initial)
        return states.to(x.dtype), last


class RecurrentBlock(nn.Module):
    """W_out (gelu(W_gate x) * RG-LRU(conv(W_in x))): (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__()
        dim, width = config.model_dim, config.recurrent_dim
        self.gate = nn.Linear(dim, width, bias=False)
        self.input = nn.Linear(dim, width, bias=False)
        # Holds weights only.
        self.conv = nn.Conv1d(width, width, config.conv_kernel, groups=width)
        self.lru = RGLRU(width, config.num_gate_blocks)
        self.out = nn.Linear(width, dim, bias=False)

    def empty_state(self, batch_size: int) -> MixerState:
        width, _, taps = self.conv.weight.shape
        new = self.conv.weight.new_zeros
        return MixerState(new(batch_size, width, taps - 1), new(batch_size, width).float())

    def forward(
        self, x: Tensor, state: MixerState | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        inputs = self.input(x)  # (B, T, R)
        y = causal_conv1d(
            inputs, self.conv.weight.squeeze(1), self.conv.bias, activation=None,
            initial_state=None if state is None else state.conv,
        )  # fmt: skip
        y, last = self.lru(y, None if state is None else state.ssm, lengths)
        if state is not None:
            state.put(None, state.read_inputs(inputs, lengths), last)
        return self.out(F.gelu(self.gate(x)) * y)


def init_projection(weight: Tensor, num_additions: int = 1) -> None:
    """N(0, 1 / fan_in), over the number of additions to the stream where it is one."""
    nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1] * num_additions))
