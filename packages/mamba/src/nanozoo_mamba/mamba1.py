"""The Mamba-1 mixer: a gate, a short causal convolution, and a scan whose steps follow the input.

Shapes: B batch, L sequence, D model_dim, E = expand * D inner width, N state_dim, R rank of the
step sizes, K conv_kernel.
Reference: arXiv 2312.00752, section 3.4 and algorithm 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.machine.precision import widened
from nanozoo_core.nn.mamba2 import DELTA_FLOOR, DELTA_RANGE
from nanozoo_core.nn.mixer_state import MixerState, RecurrentMixer, init_step_bias
from nanozoo_core.ops.backend import Backend
from nanozoo_core.ops.selective_scan import selective_scan, selective_scan_step


class Mamba1Mixer(RecurrentMixer):
    """u (B, L, D) -> (B, L, D), mixing along L with a state of constant size."""

    def __init__(
        self,
        model_dim: int,
        *,
        state_dim: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        delta_range: tuple[float, float] = DELTA_RANGE,
        delta_floor: float = DELTA_FLOOR,
        rank_init: str = "random",
        rank_scale: float = 1.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        inner = expand * model_dim
        rank = rank or math.ceil(model_dim / 16)
        self.split = (rank, state_dim, state_dim)  # of x_proj's outputs
        self.delta_range, self.delta_floor = delta_range, delta_floor
        self.rank_init, self.rank_scale = rank_init, rank_scale
        self.backend = backend
        self.in_proj = nn.Linear(model_dim, 2 * inner, bias=bias)  # [x | z]
        self.in_proj.weight.muon_split = (inner, inner)  # type: ignore[attr-defined]
        # Holds weights only.
        self.conv = nn.Conv1d(inner, inner, conv_kernel, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)  # [step sizes | b | c]
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state_dim))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, model_dim, bias=bias)
        self.init_scan_parameters()

    @torch.no_grad()
    def init_scan_parameters(self) -> None:
        """
        A_log           log(1 .. N), for every channel
        skip            1
        dt_proj.weight  U(+-scale / sqrt(R)), or that constant
        dt_proj.bias    step sizes log-uniform over their range
        """
        states = torch.arange(1, self.A_log.shape[1] + 1, dtype=torch.float32)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        self.skip.fill_(1.0)
        limit = self.rank_scale / math.sqrt(self.split[0])
        if self.rank_init == "constant":
            self.dt_proj.weight.fill_(limit)
        else:
            self.dt_proj.weight.uniform_(-limit, limit)
        init_step_bias(self.dt_proj.bias, self.delta_range, self.delta_floor)

    def scan_shape(self) -> tuple[int, ...]:
        return tuple(self.A_log.shape)  # (E, N)

    def forward(
        self, u: Tensor, state: MixerState | None = None, lengths: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        inputs, z = self.in_proj(u).chunk(2, dim=-1)  # (B, L, E) each
        x = self.convolve(inputs, state, segments)
        y, last = selective_scan(
            x,
            **self._scan_arguments(x, z),
            initial_state=None if state is None else state.ssm,
            segments=segments,
            lengths=lengths,
            backend=self.backend,
        )
        if state is not None:
            state.put(None, state.read_inputs(inputs, lengths), last)
        return self.out_proj(y)

    def step(self, u: Tensor, state: MixerState, rows: Tensor | None = None) -> Tensor:
        inputs, z = self.in_proj(u).chunk(2, dim=-1)
        conv, ssm = state.take(rows)
        x, conv = self.convolve_step(conv, inputs)
        y, ssm = selective_scan_step(ssm, x, **self._scan_arguments(x, z))
        state.put(rows, conv, ssm)
        return self.out_proj(y)

    def rates(self) -> Tensor:
        """A (E, N), in float32 (or wider)."""
        return -torch.exp(widened(self.A_log))

    def flops(self, length: Tensor) -> Tensor:
        """FLOPs per position of a forward pass, beside those of the projections: the convolution,
        and nine for each state."""
        return torch.as_tensor(2.0 * self.conv.weight.numel() + 9 * self.A_log.numel())

    def _scan_arguments(self, x: Tensor, z: Tensor) -> dict[str, Any]:
        """What the convolved inputs x (.., E) choose, step sizes before bias and softplus (.., E)
        and b and c (.., N), beside what is fixed and the gate z (.., E)."""
        low_rank, b, c = self.x_proj(x).split(self.split, dim=-1)
        return {
            "delta": nn.functional.linear(low_rank, self.dt_proj.weight),
            "rates": self.rates(),
            "b": b,
            "c": c,
            "skip": self.skip,
            "gate": z,
            "delta_bias": self.dt_proj.bias,
            "delta_softplus": True,
        }
