"""The Mamba-2 mixer: projections, a short causal convolution, the SSD scan and a gated norm.

Shapes: B batch, L sequence, D model_dim, E = expand * D inner width, H heads of P = E / H
channels, N state_dim, K conv_kernel, G groups of heads that share b and c.
Reference: arXiv 2405.21060, section 7.1 and figure 6 (sequential projections of Mamba-1 replaced
by one parallel projection).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.nn.mixer_state import MixerState, RecurrentMixer, init_step_bias
from nanozoo_core.nn.norms import gated_rms_norm
from nanozoo_core.ops.backend import Backend, valid_positions
from nanozoo_core.ops.ssd import ssd, ssd_step

DELTA_RANGE = (1e-3, 1e-1)  # step sizes at the start, log-uniform
DELTA_FLOOR = 1e-4
DECAY_RANGE = (1.0, 16.0)  # -A at the start, uniform


class Mamba2Mixer(RecurrentMixer):
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
        num_groups: int = 1,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
        bias: bool = False,
        conv_bias: bool = True,
        delta_range: tuple[float, float] = DELTA_RANGE,
        delta_floor: float = DELTA_FLOOR,
        decay_range: tuple[float, float] = DECAY_RANGE,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.inner_dim = expand * model_dim
        self.state_dim = state_dim
        self.head_dim = head_dim
        self.num_groups = num_groups
        self.chunk_size = chunk_size
        self.delta_range, self.delta_floor = delta_range, delta_floor
        self.decay_range = decay_range
        self.backend, self.norm_eps = backend, norm_eps
        num_heads, rest = divmod(self.inner_dim, head_dim)
        if rest:
            raise ValueError(
                f"head_dim={head_dim} does not divide expand * model_dim={self.inner_dim}"
            )
        if num_heads % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide the {num_heads} heads")
        shared = num_groups * state_dim
        conv_dim = self.inner_dim + 2 * shared
        self.in_proj = nn.Linear(model_dim, self.inner_dim + conv_dim, bias=bias)  # [z|x|b|c]
        self.blocks = (self.inner_dim, self.inner_dim, shared, shared)
        self.in_proj.weight.muon_split = self.blocks  # type: ignore[attr-defined]
        self.dt_proj = nn.Linear(model_dim, num_heads, bias=bias)
        # Holds weights only.
        self.conv = nn.Conv1d(conv_dim, conv_dim, conv_kernel, groups=conv_dim, bias=conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.skip = nn.Parameter(torch.empty(num_heads))
        self.norm = nn.RMSNorm(self.inner_dim, eps=norm_eps)  # holds its gain only
        self.out_proj = nn.Linear(self.inner_dim, model_dim, bias=bias)
        self.init_scan_parameters()

    @torch.no_grad()
    def init_scan_parameters(self) -> None:
        """Sets A_log, dt_bias and skip as published; the other parameters keep torch's defaults
        (the convolution's is the published one) until a model sets them."""
        self.A_log.uniform_(*self.decay_range).log_()
        init_step_bias(self.dt_bias, self.delta_range, self.delta_floor)
        self.skip.fill_(1.0)

    def scan_shape(self) -> tuple[int, ...]:
        return self.A_log.shape[0], self.head_dim, self.state_dim  # (H, P, N)

    def forward(
        self, u: Tensor, state: MixerState | None = None, lengths: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        z, conv_inputs, dt = self._project(u)
        delta, log_decay = self._discretise(dt)  # (B, L, H) float32
        if lengths is not None:
            # A step of size 0 keeps the state: softplus first, then the mask.
            valid = valid_positions(u, lengths)[..., None]
            delta, log_decay = delta * valid, log_decay * valid
        x, b, c = self._split(self.convolve(conv_inputs, state, segments))
        y, last = ssd(
            x,
            delta,
            log_decay,
            b,
            c,
            skip=self.skip,
            initial_state=None if state is None else state.ssm,
            segments=segments,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        if state is not None:
            state.put(None, state.read_inputs(conv_inputs, lengths), last)
        return self._gate_and_project(y.flatten(-2), z)

    def flops(self, length: Tensor) -> Tensor:
        """FLOPs per position of a forward pass over `length` positions, beside those of the
        projections: convolution; scores and outputs inside a block in full; state updates and
        reads."""
        inner, states = self.inner_dim, self.state_dim
        convolution = 2 * self.conv.weight.numel()
        scores = states * self.num_groups
        blocks = 2 * length.clamp(max=self.chunk_size) * (scores + inner)
        return convolution + blocks + 4 * inner * states

    def step(self, u: Tensor, state: MixerState, rows: Tensor | None = None) -> Tensor:
        z, conv_inputs, dt = self._project(u)
        delta, log_decay = self._discretise(dt)
        conv, ssm = state.take(rows)
        xbc, conv = self.convolve_step(conv, conv_inputs)
        x, b, c = self._split(xbc)
        y, ssm = ssd_step(ssm, x, delta, log_decay, b, c, skip=self.skip)
        state.put(rows, conv, ssm)
        return self._gate_and_project(y.flatten(-2), z)

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (.., E), [x | b | c] before the convolution (.., E + 2 G N), dt (.., H)."""
        z, xbc = self.in_proj(u).split([self.inner_dim, self.conv.weight.shape[0]], -1)
        return z, xbc, self.dt_proj(u)

    def _split(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (.., H, P), b and c (.., N), or (.., G, N) where there are several groups."""
        x, b, c = xbc.split(self.blocks[1:], dim=-1)
        if self.num_groups > 1:
            b, c = (t.unflatten(-1, (self.num_groups, self.state_dim)) for t in (b, c))
        return x.unflatten(-1, (-1, self.head_dim)), b, c

    def _discretise(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes and log decays in float32 (or wider), both (.., H)."""
        dtype = wide_dtype(dt)
        delta = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
        return delta, -torch.exp(self.A_log.to(dtype)) * delta

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate first, norm second, each group of heads by itself, in float32 (or wider)."""
        dtype = wide_dtype(y)
        y, z, weight = (t.unflatten(-1, (self.num_groups, -1)) for t in (y, z, self.norm.weight))
        normed = gated_rms_norm(y.to(dtype), z.to(dtype), weight.to(dtype), self.norm_eps)
        return self.out_proj(normed.flatten(-2).to(y.dtype))
