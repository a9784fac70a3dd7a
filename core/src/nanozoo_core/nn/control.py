"""The control: the plain pre-norm decoder that every idea in the zoo is held against.

RMSNorm without gain, rotary positions with QK-norm, a squared-ReLU MLP, no biases, zero-initialised
outputs. A package that changes one thing subclasses the block or replaces its `attention` or `mlp`.

B batch, T sequence, D model_dim, H heads, Hk key and value heads, K head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.feed_forward import ReluSquared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles, apply_rotary, rotary_angles


def init_input_matrix(weight: Tensor) -> None:
    """Uniform with standard deviation 0.5 / sqrt(fan_in): the control's rule for input matrices."""
    limit = math.sqrt(3) * 0.5 / math.sqrt(weight.shape[-1])
    nn.init.uniform_(weight, -limit, limit)


class ControlAttention(nn.Module):
    """Causal attention with rotary positions over the whole head, then RMSNorm of q and k."""

    def __init__(self, model_dim: int, num_heads: int, *, num_kv_heads: int | None = None) -> None:
        super().__init__()
        num_kv_heads = num_kv_heads or num_heads
        self.head_dim = model_dim // num_heads
        self.split = (model_dim, num_kv_heads * self.head_dim, num_kv_heads * self.head_dim)
        self.qkv = nn.Linear(model_dim, sum(self.split), bias=False)
        self.qkv.weight.muon_split = self.split  # type: ignore[attr-defined]
        self.out = nn.Linear(model_dim, model_dim, bias=False)

    def forward(
        self, x: Tensor, angles: Angles, *,
        cache: KVCache | None = None, layer: int = 0, rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        parts = self.qkv(x).split(self.split, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        q = rms_norm(apply_rotary(q, *angles))  # (B, H, T, K)
        k = rms_norm(apply_rotary(k, *angles))  # (B, Hk, T, K)
        y = attend(q, k, v) if cache is None else cache.attend(layer, q, k, v, rows=rows)
        return self.out(y.transpose(1, 2).flatten(2))


class ControlBlock(nn.Module):
    """x + delta(x): attention, then the MLP, each reading a normalised stream."""

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.attention = ControlAttention(model_dim, num_heads, num_kv_heads=num_kv_heads)
        self.mlp = ReluSquared(model_dim, int(mlp_ratio * model_dim))
        self.init_weights()

    def init_weights(self) -> None:
        """
        attention.qkv, mlp.up     U(+-sqrt(3) * 0.5 / sqrt(fan_in))
        attention.out, mlp.down   0
        """
        init_input_matrix(self.attention.qkv.weight)
        init_input_matrix(self.mlp.up.weight)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.mlp.down.weight)

    def delta(
        self, x: Tensor, angles: Angles, *,
        cache: KVCache | None = None, layer: int = 0, rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What the block adds to the residual stream x, (B, T, D)."""
        attended = self.attention(rms_norm(x), angles, cache=cache, layer=layer, rows=rows)
        return attended + self.mlp(rms_norm(x + attended))

    def forward(
        self, x: Tensor, angles: Angles, *,
        cache: KVCache | None = None, layer: int = 0, rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return x + self.delta(x, angles, cache=cache, layer=layer, rows=rows)


def control_block(config: ControlConfig) -> ControlBlock:
    """A block of the control's sizes."""
    return ControlBlock(config.model_dim, config.num_heads, mlp_ratio=config.mlp_ratio)


class ControlModel(nn.Module):
    """Embedding, RMSNorm, control blocks, RMSNorm, untied head."""

    def __init__(
        self,
        config: ControlConfig,
        *,
        block: Callable[[int], nn.Module] | None = None,
        num_rows: int | None = None,
    ) -> None:
        """
        Args:
            block: makes the block of a layer (0, 1, ...); None makes the control's.
            num_rows: of the embedding and the head, at least the vocabulary; None is just that.
        """
        super().__init__()
        self.config = config
        self.max_context: int | None = config.seq_len
        """The longest sequence worth reading; None is no limit."""
        num_rows = config.vocab_size if num_rows is None else num_rows
        self.embedding = nn.Embedding(num_rows, config.model_dim)
        self.blocks = nn.ModuleList(
            control_block(config) if block is None else block(layer)
            for layer in range(config.num_layers)
        )
        self.head = nn.Linear(config.model_dim, num_rows, bias=False)
        self.head_dim = config.head_dim
        self.num_kv_heads = config.num_heads  # blocks of another number set it
        self.init_weights()

    def init_weights(self) -> None:
        """
        embedding   N(0, 1)
        blocks      ControlBlock.init_weights
        head        N(0, 0.001^2): the loss starts at ln V
        """
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.head.weight, std=0.001)

    @property
    def output_weight(self) -> Tensor:
        return self.head.weight

    def embed(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Angles]:
        """What the first block reads, (B, T, D), and the rotary angles of the tokens' positions."""
        length = tokens.shape[1]
        positions = (
            torch.arange(length, device=tokens.device) if cache is None else cache.positions(length)
        )
        return rms_norm(self.embedding(tokens)), rotary_angles(positions, self.head_dim)

    def stream(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Angles]:
        """The stream (B, T, D) behind the last block, before the final norm, and the angles."""
        x, angles = self.embed(tokens, cache)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, cache=cache, layer=layer)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return x, angles

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final normalised stream (B, T, D) for tokens (B, T); `cache` continues a sequence."""
        return rms_norm(self.stream(tokens, cache)[0])

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return self.head(features)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        return self.new_cache(len(self.blocks), batch_size, max_length)

    def new_cache(self, num_layers: int, batch_size: int, max_length: int) -> KVCache:
        """Empty keys and values of `num_layers` blocks with this model's heads."""
        weight = self.embedding.weight
        return KVCache(
            num_layers, batch_size, max_length, self.num_kv_heads, self.head_dim,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
