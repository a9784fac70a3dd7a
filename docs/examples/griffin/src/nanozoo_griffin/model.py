"""Griffin: residual blocks whose temporal mixing is a gated linear recurrence or local attention.

B batch, T sequence, D model_dim, H heads, K head_dim, V vocabulary.
Reference: De et al. 2024, arXiv 2402.19427.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.feed_forward import GeGLU
from nanozoo_core.nn.layered_cache import LayeredCache, WindowState
from nanozoo_core.nn.mixer_state import MixerState
from nanozoo_core.nn.norms import RMSNorm
from nanozoo_core.nn.rotary import Angles, apply_rotary, rotary_angles
from nanozoo_griffin.config import GriffinConfig
from nanozoo_griffin.recurrence import RecurrentBlock, init_projection

Cache = LayeredCache[WindowState | MixerState]


class LocalAttention(nn.Module):
    """Attention over a window with rotary positions, all queries on one head of keys and values."""

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__()
        self.head_dim, self.window = config.head_dim, config.window
        self.q = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.kv = nn.Linear(config.model_dim, 2 * config.head_dim, bias=False)
        self.out = nn.Linear(config.model_dim, config.model_dim, bias=False)

    def empty_state(self, batch_size: int) -> WindowState:
        weight = self.kv.weight
        return WindowState.empty(
            batch_size, self.window, 1, self.head_dim, device=weight.device, dtype=weight.dtype
        )

    def forward(
        self, x: Tensor, angles: Angles, past: Tensor,
        state: WindowState | None = None, lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, K)
        k, v = (part[:, None] for part in self.kv(x).chunk(2, dim=-1))  # (B, 1, T, K)
        q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        if state is None:
            y = attend(q, k, v, window=self.window)
        else:
            y = state.attend(q, k, v, past, lengths)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + mixing(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GriffinConfig, kind: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.model_dim)
        self.mixer = RecurrentBlock(config) if kind == "r" else LocalAttention(config)
        self.mlp_norm = RMSNorm(config.model_dim)
        self.mlp = GeGLU(config.model_dim, config.mlp_dim)

    def forward(
        self, x: Tensor, angles: Angles, past: Tensor,
        state: WindowState | MixerState | None, lengths: Tensor | None,
    ) -> Tensor:  # fmt: skip
        y = self.norm(x)
        if isinstance(self.mixer, RecurrentBlock):
            assert state is None or isinstance(state, MixerState)
            x = x + self.mixer(y, state, lengths)
        else:
            x = x + self.mixer(y, angles, past, state, lengths)
        return x + self.mlp(self.mlp_norm(x))


class Griffin(nn.Module):
    """Tied embedding, blocks, RMSNorm; a text may be longer than those of training."""

    max_context = None
    reads_lengths = True

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.model_dim)
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.kinds)
        self.norm = RMSNorm(config.model_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """
        embedding             N(0, 1 / D): the stream starts at variance 1, logits too
        projections           N(0, 1 / fan_in)
        those to the stream   the same over 2 num_layers
        gates, filter, decay  their modules' own; gains 1
        """
        nn.init.normal_(self.embedding.weight, std=self.config.model_dim**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                to_stream = name.endswith(("out", "down"))
                init_projection(module.weight, 2 * len(self.blocks) if to_stream else 1)

    @property
    def output_weight(self) -> Tensor:
        return self.embedding.weight

    def features(
        self, tokens: Tensor, cache: Cache | None = None, *, lengths: Tensor | None = None
    ) -> Tensor:
        """The final normalised stream (B, T, D) for tokens (B, T).

        Args: cache: what the tokens continue; lengths: (B,) valid ones of right-padded rows.
        """
        (batch, length), config = tokens.shape, self.config
        past = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        if cache is not None:
            past = cache.lengths
        positions = past[:, None] + torch.arange(length, device=tokens.device)
        angles = rotary_angles(positions, config.head_dim)
        x = self.embedding(tokens) * math.sqrt(config.model_dim)
        states = [None] * len(self.blocks) if cache is None else cache.states
        for block, state in zip(self.blocks, states, strict=True):
            x = block(x, angles, past, state, lengths)
        if cache is not None:
            cache.advance(length if lengths is None else lengths)
        return self.norm(x)

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.output_weight)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """A state of constant size for rows of any length."""
        lengths = torch.zeros(batch_size, dtype=torch.int64, device=self.embedding.weight.device)
        return LayeredCache([b.mixer.empty_state(batch_size) for b in self.blocks], lengths)


Model = Griffin
