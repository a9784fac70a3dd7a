"""The plain causal blocks that both models are made of, and attention over the patch border.

N sequences, S positions of one, D width, H heads, K head_dim; B windows of M patches of P bytes,
R bytes that a patch sees of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.attention import attend, sdpa
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.feed_forward import ReluSquared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles, apply_rotary

Look = Callable[[Tensor, Tensor, Tensor], Tensor]  # attention: q, k, v (N, H, S, K) -> the same


def attend_across(q: Tensor, k: Tensor, v: Tensor, *, num_patches: int, overlap: int) -> Tensor:
    """Causal attention within each patch and to the last R bytes of the patch before.

    Args: q, k, v: (B * M, H, P, K), the patches of a window in order. Returns: (B * M, H, P, K).
    """
    size = q.shape[2]

    def with_tail(x: Tensor) -> Tensor:
        tails = x.unflatten(0, (-1, num_patches))[:, :-1, :, size - overlap :]
        tails = F.pad(tails, (0, 0, 0, 0, 0, 0, 1, 0))  # nothing stands before the first patch
        return torch.cat([tails.flatten(0, 1), x], dim=2)  # (B * M, H, R + P, K)

    mask = torch.ones(size, overlap + size, dtype=torch.bool, device=q.device).tril(overlap)
    masks = mask.expand(num_patches, 1, -1, -1).clone()
    masks[0, :, :, :overlap] = False
    masks = masks.repeat(q.shape[0] // num_patches, 1, 1, 1)  # (B * M, 1, P, R + P)
    return sdpa(q, with_tail(k), with_tail(v), mask=masks)


class Attention(nn.Module):
    """Attention without biases; rotary positions where angles are given."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.qkv.weight.muon_split = (dim, dim, dim)  # type: ignore[attr-defined]
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, angles: Angles | None, look: Look) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (N, H, S, K)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if angles is not None:
            q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        return self.out(look(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.mlp = ReluSquared(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor, angles: Angles | None, look: Look) -> Tensor:
        x = x + self.attention(rms_norm(x), angles, look)
        return x + self.mlp(rms_norm(x))


class Transformer(nn.Module):
    """A run of blocks and a last norm."""

    def __init__(self, dim: int, num_layers: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(num_layers))

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """
        attention.qkv, mlp.up     N(0, std^2)
        attention.out, mlp.down   N(0, std^2 / (2 num_layers))
        """
        output_std = std / math.sqrt(2 * len(self.blocks))
        for name, weight in self.named_parameters():
            weight.normal_(std=output_std if "out." in name or "down." in name else std)

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        weight = next(self.parameters())
        return KVCache(
            len(self.blocks), batch_size, max_length, self.num_heads, self.head_dim,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        angles: Angles | None = None,
        *,
        look: Look = attend,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(N, S, D) -> (N, S, D), each sequence for itself unless `look` says otherwise; with a
        cache they go on where it ends, for all its rows or for `rows` (N,)."""
        for layer, block in enumerate(self.blocks):
            if cache is not None:
                look = partial(cache.attend, layer, rows=rows)
            x = block(x, angles, look)
        if cache is not None:
            cache.advance(x.shape[1], rows)
        return rms_norm(x)
