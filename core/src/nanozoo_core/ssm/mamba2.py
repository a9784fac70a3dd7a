"""The Mamba-2 mixer: projections, a short causal convolution, the SSD scan and a gated norm.

Shapes: B batch, L sequence, D model_dim, E = expand * D inner width, H heads of P = E / H
channels, N state_dim, K conv_kernel.
Reference: arXiv 2405.21060, section 7.1 and figure 6 (sequential projections of Mamba-1 replaced
by one parallel projection), with one group of b and c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.ssm.causal_conv import causal_conv1d, causal_conv1d_step
from nanozoo_core.ssm.ssd import ssd, ssd_step

DELTA_RANGE = (1e-3, 1e-1)  # step sizes at the start, log-uniform
DELTA_FLOOR = 1e-4
DECAY_RANGE = (1.0, 16.0)  # -A at the start, uniform


@dataclass
class Mamba2State:
    """What a mixer remembers of a sequence; a forward pass or step that is given it replaces it."""

    conv: Tensor  # (B, E + 2N, K - 1): the last inputs of the convolution, oldest first
    ssm: Tensor  # (B, H, P, N) float32

    @property
    def num_bytes(self) -> int:
        return self.conv.nbytes + self.ssm.nbytes


class Mamba2Mixer(nn.Module):
    """u (B, L, D) -> (B, L, D), mixing along L with a state of constant size.

    The published layer has one input projection to [z | x | b | c | dt]. Here its last H rows are
    a Linear of their own: a parameter has one optimiser, and the few rows that set the step sizes
    want AdamW whatever H is, while the blocks z, x, b and c are matrices for Muon. To load a
    published weight, split its rows at 2E + 2N.
    """

    def __init__(
        self,
        model_dim: int,
        *,
        state_dim: int = 128,
        conv_kernel: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.inner_dim = expand * model_dim
        self.state_dim = state_dim
        self.head_dim = head_dim
        self.chunk_size = chunk_size
        num_heads, rest = divmod(self.inner_dim, head_dim)
        if rest:
            raise ValueError(
                f"head_dim={head_dim} does not divide expand * model_dim={self.inner_dim}"
            )
        conv_dim = self.inner_dim + 2 * state_dim
        self.in_proj = nn.Linear(model_dim, self.inner_dim + conv_dim, bias=False)  # [z|x|b|c]
        blocks = (self.inner_dim, self.inner_dim, state_dim, state_dim)
        self.in_proj.weight.muon_split = blocks  # type: ignore[attr-defined]
        self.dt_proj = nn.Linear(model_dim, num_heads, bias=False)
        self.conv = nn.Conv1d(
            conv_dim, conv_dim, conv_kernel, groups=conv_dim
        )  # holds weights only
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.skip = nn.Parameter(torch.empty(num_heads))
        self.norm = nn.RMSNorm(self.inner_dim, eps=norm_eps)
        self.out_proj = nn.Linear(self.inner_dim, model_dim, bias=False)
        self.init_scan_parameters()

    @torch.no_grad()
    def init_scan_parameters(self) -> None:
        """Sets A_log, dt_bias and skip as published; the other parameters keep torch's defaults
        (the convolution's is the published one) until a model sets them."""
        self.A_log.uniform_(*DECAY_RANGE).log_()
        low, high = (math.log(bound) for bound in DELTA_RANGE)
        delta = self.dt_bias.uniform_(low, high).exp_().clamp_(min=DELTA_FLOOR)
        self.dt_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        self.skip.fill_(1.0)

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Mamba2State:
        """The state before the first position; `dtype` is that of the convolution's inputs."""
        conv_dim, _, width = self.conv.weight.shape
        shape = (batch_size, self.A_log.shape[0], self.head_dim, self.state_dim)
        return Mamba2State(
            conv=torch.zeros(batch_size, conv_dim, width - 1, device=device, dtype=dtype),
            ssm=torch.zeros(shape, device=device, dtype=torch.float32),
        )

    def forward(
        self,
        u: Tensor,
        state: Mamba2State | None = None,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Mixes a whole sequence.

        Args:
            u: (B, L, D).
            state: where to start from; afterwards it is the state behind each row's end.
            lengths: (B,) valid positions of right-padded rows, needed only with `state`; outputs
                behind a row's end mean nothing.
            segments: (B, L) integers; nothing passes where the number changes.
        """
        z, conv_inputs, dt = self._project(u)
        delta, log_decay = self._discretise(dt)  # (B, L, H) float32
        if lengths is not None:
            # A step of size 0 keeps the state: softplus first, then the mask.
            valid = (torch.arange(u.shape[1], device=u.device) < lengths[:, None])[..., None]
            delta, log_decay = delta * valid, log_decay * valid
        xbc = causal_conv1d(
            conv_inputs,
            self.conv.weight.squeeze(1),
            self.conv.bias,
            initial_state=None if state is None else state.conv,
            segments=segments,
        )
        x, b, c = xbc.split([self.inner_dim, self.state_dim, self.state_dim], dim=-1)
        y, last = ssd(
            x.unflatten(-1, (-1, self.head_dim)),
            delta,
            log_decay,
            b,
            c,
            skip=self.skip,
            initial_state=None if state is None else state.ssm,
            segments=segments,
            chunk_size=self.chunk_size,
        )
        if state is not None:
            state.conv = self._last_inputs(state.conv, conv_inputs, lengths)
            state.ssm = last
        return self._gate_and_project(y.flatten(-2), z)

    def step(self, u: Tensor, state: Mamba2State, rows: Tensor | None = None) -> Tensor:
        """One position, (B, D) -> (B, D), replacing `state`. With `rows` (R,) only these rows of
        the state take part, and u and the result have R rows."""
        z, conv_inputs, dt = self._project(u)
        delta, log_decay = self._discretise(dt)
        conv = state.conv if rows is None else state.conv[rows]
        ssm = state.ssm if rows is None else state.ssm[rows]
        xbc, conv = causal_conv1d_step(
            conv, conv_inputs, self.conv.weight.squeeze(1), self.conv.bias
        )
        x, b, c = xbc.split([self.inner_dim, self.state_dim, self.state_dim], dim=-1)
        y, ssm = ssd_step(
            ssm, x.unflatten(-1, (-1, self.head_dim)), delta, log_decay, b, c, skip=self.skip
        )
        if rows is None:
            state.conv, state.ssm = conv, ssm
        else:
            state.conv.index_copy_(0, rows, conv)
            state.ssm.index_copy_(0, rows, ssm)
        return self._gate_and_project(y.flatten(-2), z)

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (.., E), [x | b | c] before the convolution (.., E + 2N), dt (.., H)."""
        z, xbc = self.in_proj(u).split([self.inner_dim, self.inner_dim + 2 * self.state_dim], -1)
        return z, xbc, self.dt_proj(u)

    def _discretise(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes and log decays in float32 (or wider), both (.., H)."""
        dtype = torch.promote_types(dt.dtype, torch.float32)
        delta = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
        return delta, -torch.exp(self.A_log.to(dtype)) * delta

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate first, norm second, both in float32 (or wider)."""
        dtype = torch.promote_types(y.dtype, torch.float32)
        return self.out_proj(self.norm(y.to(dtype) * F.silu(z.to(dtype))).to(y.dtype))

    @staticmethod
    def _last_inputs(before: Tensor, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """The K - 1 inputs that end at each row's last valid position, (B, E + 2N, K - 1)."""
        width = before.shape[-1]
        history = torch.cat([before.mT, inputs.to(before.dtype)], dim=1)  # (B, K - 1 + L, ..)
        if lengths is None:
            return history[:, history.shape[1] - width :].mT
        window = lengths[:, None] + torch.arange(width, device=lengths.device)  # (B, K - 1)
        return history.gather(1, window[..., None].expand(-1, -1, history.shape[-1])).mT
