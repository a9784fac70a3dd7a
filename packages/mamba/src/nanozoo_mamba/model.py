"""Mamba: blocks of a selective state-space mixer on a residual stream, without attention.

Shapes: B batch, T sequence, K new tokens, D model_dim, V vocabulary.
Reference: Gu and Dao 2023, arXiv 2312.00752; Dao and Gu 2024, arXiv 2405.21060.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.feed_forward import SwiGLU
from nanozoo_core.nn.layered_cache import LayeredCache
from nanozoo_core.nn.mamba2 import Mamba2Mixer
from nanozoo_core.nn.mixer_state import MixerState
from nanozoo_core.nn.norms import RMSNorm
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.mamba1 import Mamba1Mixer

Mixer = Mamba1Mixer | Mamba2Mixer


def make_mixer(config: MambaConfig) -> Mixer:
    delta_range = (config.time_step_min, config.time_step_max)
    if config.variant == "mamba1":
        return Mamba1Mixer(
            config.shape.model_dim,
            state_dim=config.states,
            conv_kernel=config.d_conv,
            expand=config.expand,
            rank=config.steps.rank,
            bias=config.use_bias,
            conv_bias=config.use_conv_bias,
            delta_range=delta_range,
            delta_floor=config.time_step_floor,
            rank_init=config.steps.init_scheme,
            rank_scale=config.steps.scale,
            backend=config.scan_backend,
        )
    low, high = config.heads.decay_range
    return Mamba2Mixer(
        config.shape.model_dim,
        state_dim=config.states,
        conv_kernel=config.d_conv,
        expand=config.expand,
        head_dim=config.heads.head_dim,
        num_groups=config.heads.num_groups,
        chunk_size=config.heads.chunk_size,
        norm_eps=config.norm_eps,
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
        delta_range=delta_range,
        delta_floor=config.time_step_floor,
        decay_range=(low, high),
        backend=config.scan_backend,
    )


class Block(nn.Module):
    """h + mixer(norm(h)), and with an MLP the same again."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        dim = config.shape.model_dim
        self.norm = RMSNorm(dim, eps=config.norm_eps)
        self.mixer = make_mixer(config)
        self.mlp: SwiGLU | None = None
        if config.mlp_dim:
            self.mlp_norm = RMSNorm(dim, eps=config.norm_eps)
            self.mlp = SwiGLU(dim, config.mlp_dim)

    def outputs(self) -> list[nn.Linear]:
        """The layers that write to the stream."""
        return [self.mixer.out_proj] + ([] if self.mlp is None else [self.mlp.down])

    def forward(
        self,
        h: Tensor,
        state: MixerState | None,
        lengths: Tensor | None,
        documents: Tensor | None,
    ) -> Tensor:
        return self._feed_forward(h + self.mixer(self.norm(h), state, lengths, documents).to(h))

    def step(self, h: Tensor, state: MixerState) -> Tensor:
        """One position, (B, D) -> (B, D)."""
        return self._feed_forward(h + self.mixer.step(self.norm(h), state).to(h))

    def _feed_forward(self, h: Tensor) -> Tensor:
        return h if self.mlp is None else h + self.mlp(self.mlp_norm(h)).to(h)


class Mamba(nn.Module):
    """Logits for the next token at every position; no positions, no longest text."""

    max_context = None
    reads_lengths = True

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        num_layers, dim = config.shape
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(num_layers))
        self.norm = RMSNorm(dim, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.head = nn.Linear(dim, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        embedding, head      N(0, initializer_range^2)
        projections, filter  U(+-1 / sqrt(fan_in)), torch's own
        to the stream        the same over sqrt(n), n additions to the stream in all
        gains                1
        their biases         0
        A_log, skip, dt      the mixer's own, never touched here
        """
        std = self.config.initializer_range
        self.embedding.weight.normal_(std=std)
        if not self.config.tie_embeddings:
            self.head.weight.normal_(std=std)
        outputs = [layer for block in self.each_block() for layer in block.outputs()]
        if self.config.rescale_prenorm_residual:
            for layer in outputs:
                layer.weight.div_(math.sqrt(len(outputs)))
        for block in self.each_block():
            for module in block.modules():
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            block.mixer.init_scan_parameters()  # dt_proj has a bias that is no zero

    def each_block(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def output_weight(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def features(
        self,
        tokens: Tensor,
        cache: LayeredCache[MixerState] | None = None,
        *,
        lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """The final normalised stream (B, T, D) for tokens (B, T).

        Args:
            cache: what the tokens continue; it is advanced.
            lengths: (B,) valid tokens of right-padded rows, with a cache; None is all.
            documents: (B, T) numbers between which nothing passes; None is one document.
        """
        h = self._stream(self.embedding(tokens))
        if cache is None:
            for block in self.each_block():
                h = block(h, None, None, documents)
            return self.norm(h)
        if tokens.shape[1] == 1 and lengths is None:
            h = h[:, 0]
            for block, state in zip(self.each_block(), cache.states, strict=True):
                h = block.step(h, state)
            h = h[:, None]
        else:
            for block, state in zip(self.each_block(), cache.states, strict=True):
                h = block(h, state, lengths, documents)
        cache.advance(tokens.shape[1] if lengths is None else lengths)
        return self.norm(h)

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return F.linear(features, self.output_weight)

    def forward(self, tokens: Tensor, cache: LayeredCache[MixerState] | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> LayeredCache[MixerState]:
        """An empty decoding state for `batch_size` rows of any length."""
        weight = self.embedding.weight
        return LayeredCache(
            states=[
                block.mixer.init_state(batch_size, weight.device, weight.dtype)
                for block in self.each_block()
            ],
            lengths=torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        )

    def _stream(self, x: Tensor) -> Tensor:
        """The residual stream's start in its own precision."""
        device = x.device.type
        if not self.config.residual_in_fp32 and torch.is_autocast_enabled(device):
            return x.to(torch.get_autocast_dtype(device))
        return x if x.dtype == torch.float64 or not self.config.residual_in_fp32 else x.float()


Model = Mamba
