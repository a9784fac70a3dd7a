"""The mixers behind the letters m and t. A package that adds letters writes classes like these.

A mixer is built with (config, stage) and has `out_proj`, the Linear that writes to the residual
stream; `forward(x (B, L, D), state, lengths, documents)`, which takes an empty state or None and
leaves in it what lies behind each row's end (`lengths` (B,), right-padded); `empty_state(
batch_size, max_length)`; `step(x (R, D), state, rows)`, one position of all or some rows; and
`flops(length)`, FLOPs per position of the forward pass other than those of Linear weights.

Shapes: B batch, L positions of the stage, D its model_dim, H heads, K head_dim, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.mamba2 import Mamba2Mixer
from nanozoo_core.nn.mixer_state import MixerState
from nanozoo_core.nn.rotary import apply_rotary, rotary_angles
from nanozoo_hnet.config import HNetConfig


class SSM(Mamba2Mixer):
    """Mamba-2, whose state has a constant size."""

    def __init__(self, config: HNetConfig, stage: int) -> None:
        super().__init__(
            config.per_stage("model_dim")[stage],
            state_dim=config.ssm("d_state"),
            conv_kernel=config.ssm("d_conv"),
            expand=config.ssm("expand"),
            head_dim=config.ssm("head_dim"),
            chunk_size=config.ssm("chunk_size"),
            norm_eps=config.norm_eps,
        )

    def empty_state(self, batch_size: int, max_length: int) -> MixerState:
        weight = self.out_proj.weight
        return self.init_state(batch_size, weight.device, weight.dtype)


@dataclass
class AttentionState:
    """Keys and values with room that grows: how many chunks a text has is not known before."""

    cache: KVCache
    most: int = 0  # no row holds more; known without asking the device

    @property
    def num_bytes(self) -> int:
        return self.cache.num_bytes

    def make_room(self, num_tokens: int) -> None:
        """Sees to it that every row can take `num_tokens` more."""
        cache = self.cache
        if self.most + num_tokens > cache.max_length:
            self.most = int(cache.lengths.max())
        self.most += num_tokens
        if self.most > cache.max_length:
            extra = max(self.most - cache.max_length, cache.max_length // 2)
            cache.keys = F.pad(cache.keys, (0, 0, 0, extra))
            cache.values = F.pad(cache.values, (0, 0, 0, extra))
            cache.max_length += extra


class Attention(nn.Module):
    """Causal attention, rotary on the first channels of each head, an optional window."""

    def __init__(self, config: HNetConfig, stage: int) -> None:
        super().__init__()
        dim = config.per_stage("model_dim")[stage]
        window = config.per_stage("window_size")[stage]
        self.num_heads = config.per_stage("num_heads")[stage]
        self.rotary_dim = config.per_stage("rotary_emb_dim")[stage]
        self.window = None if window < 0 else window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.qkv.weight.muon_split = (dim, dim, dim)  # type: ignore[attr-defined]
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def empty_state(self, batch_size: int, max_length: int) -> AttentionState:
        weight = self.out_proj.weight
        head_dim = weight.shape[0] // self.num_heads
        return AttentionState(
            KVCache(
                1, batch_size, max_length, self.num_heads, head_dim,
                device=weight.device, dtype=weight.dtype,
            )
        )  # fmt: skip

    def forward(
        self, x: Tensor, state: AttentionState | None = None, lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device))
        if state is None:
            y = attend(q, k, v, window=self.window, documents=documents)  # (B, H, L, K)
        else:
            state.make_room(x.shape[1])
            y = state.cache.attend(0, q, k, v, window=self.window)
            state.cache.advance(x.shape[1] if lengths is None else lengths)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, state: AttentionState, rows: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x[:, None], state.cache.positions(1, rows))
        state.make_room(1)
        y = state.cache.attend(0, q, k, v, window=self.window, rows=rows)  # (R, H, 1, K)
        state.cache.advance(1, rows)
        return self.out_proj(y.flatten(1))

    def flops(self, length: Tensor) -> Tensor:
        """Scores and outputs, as a full square or the whole window."""
        keys = length if self.window is None else length.clamp(max=self.window + 1)
        return 4 * self.out_proj.weight.shape[0] * keys

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary_dim:
            cos, sin = rotary_angles(positions, self.rotary_dim)
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        return q, k, v  # (B, H, L, K) each
