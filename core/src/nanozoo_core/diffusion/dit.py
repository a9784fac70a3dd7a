"""DiT: the bidirectional transformer that reads a corrupted window and predicts the clean one.

B batch, S positions, D model_dim, H heads, K head_dim, F mlp_dim, C cond_dim, V output ids,
N gathered rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.attention import sdpa
from nanozoo_core.nn.rotary import apply_rotary, rotary_angles

Angles = tuple[Tensor, Tensor]
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention: q, k, v (B, H, S, K), turned by their positions, to (B, H, S, K)."""
TIME_FEATURES = 256
LEAST_BIAS = -64.0
"""A weight of e^-64 is none; below e^-87 they are denormal, which a CPU is slow at."""


class View(Protocol):
    """Where the tokens of a sequence stand and what they see, where that is not each other."""

    @property
    def positions(self) -> Tensor:
        """(S,) in the window, the context token at 0; two tokens may share one."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A `Mix` of one of the network's blocks."""
        ...


def see_all(bias: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The `Mix` of a window whose positions all see each other. Args: bias: (1, H, S, S), added to
    the scores."""
    return sdpa(q, k, v, mask=None if bias is None else bias.to(q.dtype))


class TimeEmbedding(nn.Module):
    """SiLU(W2 SiLU(W1 gamma(time))): (...) -> (..., C), gamma being 128 cosines and 128 sines with
    frequencies 10000^(-j/128)."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(TIME_FEATURES, cond_dim)
        self.output = nn.Linear(cond_dim, cond_dim)

    def forward(self, time: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=time.device) / half
        angles = time.float()[..., None] * 10000.0**-exponent  # (..., 128)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.input.weight.dtype)
        return F.silu(self.output(F.silu(self.input(features))))


def locality_bias(
    positions: Tensor, num_heads: int, slope: float, keys: Tensor | None = None
) -> Tensor | None:
    """-s_h |i - j| for attention from `positions` (S,) to those of `keys` (T,), or to themselves,
    with s_h = slope / 2^h: (1, H, S, T) float32; None for a slope of 0.

    Distant tokens begin with next to no weight, so that the first thing a network finds are its
    neighbours; rotary positions and what it learns can still reach further.
    Reference: arXiv 2108.12409, section 3, on both sides of a token.
    """
    if slope == 0:
        return None
    heads = torch.arange(num_heads, device=positions.device)
    slopes = slope * 0.5**heads  # (H,)
    distances = (positions[:, None] - (positions if keys is None else keys)).abs()  # (S, T)
    return -(slopes[:, None, None] * distances).clamp(max=-LEAST_BIAS)[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(x + shift, x, scale)


class DiTBlock(nn.Module):
    """Pre-norm attention over all positions, then a GELU MLP, each shifted, scaled and gated by the
    condition (adaLN-zero, arXiv 2212.09748) when there is one."""

    def __init__(
        self, model_dim: int, num_heads: int, *, mlp_dim: int, dropout: float, cond_dim: int | None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(model_dim, bias=False)
        self.qkv = nn.Linear(model_dim, 3 * model_dim, bias=False)
        self.qkv.weight.muon_split = (model_dim,) * 3  # type: ignore[attr-defined]
        self.out = nn.Linear(model_dim, model_dim, bias=False)
        self.norm_mlp = nn.LayerNorm(model_dim, bias=False)
        self.up = nn.Linear(model_dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, model_dim)
        self.condition = None if cond_dim is None else nn.Linear(cond_dim, 6 * model_dim)

    def forward(self, x: Tensor, angles: Angles, condition: Tensor | None, mix: Mix) -> Tensor:
        if self.condition is None or condition is None:
            x = x + self._drop(self.attention(self.norm_attention(x), angles, mix))
            return x + self._drop(self.mlp(self.norm_mlp(x)))
        parts = self.condition(condition).chunk(6, dim=-1)  # 6 of (B, 1 or S, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        attended = self.attention(modulate(self.norm_attention(x), shift1, scale1), angles, mix)
        x = torch.addcmul(x, gate1, self._drop(attended))
        return torch.addcmul(
            x, gate2, self._drop(self.mlp(modulate(self.norm_mlp(x), shift2, scale2)))
        )

    def attention(self, x: Tensor, angles: Angles, mix: Mix) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, S, 3, H, K)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, H, S, K)
        q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        return self.out(mix(q, k, v).transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class DiT(nn.Module):
    """Reads ids 0 .. num_input_ids-1 of a corrupted window, predicts ids 0 .. num_output_ids-1.

    Without time conditioning there is no adaLN at all, and the blocks' output matrices start at
    zero instead of their gates. The head starts at zero (untied), so the first loss is ln V.

    Args: seq_len: most positions it may read (context token included); dropout: after attention
        and MLP; tie_embeddings: the head is the embedding's first num_output_ids rows;
        locality: see `locality_bias`.
    Reference: arXiv 2406.07524, appendix; layers of arXiv 2212.09748 and 2310.16834.
    """

    def __init__(
        self,
        num_input_ids: int,
        num_output_ids: int,
        *,
        model_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float = 4,
        seq_len: int,
        dropout: float = 0.0,
        time_conditioning: bool = False,
        cond_dim: int = 128,
        tie_embeddings: bool = False,
        adaln_when_unconditioned: bool = False,
        locality: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_output_ids = num_output_ids
        self.num_heads = num_heads
        self.locality = locality
        self.seq_len = seq_len
        self.head_dim = model_dim // num_heads
        self.time_conditioning = time_conditioning
        conditioned = time_conditioning or adaln_when_unconditioned
        self.embedding = nn.Embedding(num_input_ids, model_dim)
        self.time_embedding = TimeEmbedding(cond_dim) if conditioned else None
        self.blocks = nn.ModuleList(
            DiTBlock(
                model_dim,
                num_heads,
                mlp_dim=int(mlp_ratio * model_dim),
                dropout=dropout,
                cond_dim=cond_dim if conditioned else None,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(model_dim, bias=False)
        self.condition = nn.Linear(cond_dim, 2 * model_dim) if conditioned else None
        self.head = None if tie_embeddings else nn.Linear(model_dim, num_output_ids)
        self.tied_bias = nn.Parameter(torch.zeros(num_output_ids)) if tie_embeddings else None
        self.init_weights()

    def init_weights(self) -> None:
        """
        embedding                     U(+-1/sqrt(D))
        qkv, up, time_embedding       U(+-1/sqrt(fan_in)), biases 0
        condition (adaLN), head       0
        out, down                     as qkv with adaLN, whose gates are zero; else 0
        """
        bound = 1 / math.sqrt(self.embedding.embedding_dim)
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        zeros: list[nn.Linear | None] = [self.condition, self.head]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                limit = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -limit, limit)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, DiTBlock):
                last = [module.out, module.down] if module.condition is None else [module.condition]
                zeros += last
        for linear in zeros:
            if linear is not None:
                nn.init.zeros_(linear.weight)

    @property
    def output_weight(self) -> Tensor:
        """(V, D)"""
        if self.head is None:
            return self.embedding.weight[: self.num_output_ids]
        return self.head.weight

    @property
    def output_bias(self) -> Tensor:
        """(V,)"""
        bias = self.tied_bias if self.head is None else self.head.bias
        assert bias is not None
        return bias

    def features(
        self, tokens: Tensor, time: Tensor | None = None, view: View | None = None
    ) -> Tensor:
        """The stream that the head reads, (B, S, D), for tokens (B, S) and time (B,), or (B, S)
        where it differs between tokens. With a `view` they stand and see as it says.

        `time` is ignored without time conditioning (a constant 0 when adaLN is kept regardless).
        """
        batch, length = tokens.shape
        assert view is not None or length <= self.seq_len, (
            f"{length} positions, but at most {self.seq_len} are known"
        )
        condition = None
        if self.time_embedding is not None:
            if not self.time_conditioning:
                time = torch.zeros(batch, device=tokens.device)
            assert time is not None, "a conditioned network needs the time"
            by_token = time if time.dim() == 2 else time[:, None]
            condition = self.time_embedding(by_token.to(tokens.device))  # (B, 1 or S, C)
        positions = torch.arange(length, device=tokens.device) if view is None else view.positions
        angles = rotary_angles(positions, self.head_dim)
        bias = locality_bias(positions, self.num_heads, self.locality) if view is None else None
        x = self.embedding(tokens)  # (B, S, D)
        for layer, block in enumerate(self.blocks):
            mix = partial(see_all, bias) if view is None else partial(view.attend, layer)
            x = block(x, angles, condition, mix)
        x = self.norm(x)
        if self.condition is None:
            return x
        shift, scale = self.condition(condition).chunk(2, dim=-1)
        return modulate(x, shift, scale)

    def logits(self, features: Tensor) -> Tensor:
        """(..., V) from features (..., D)."""
        return F.linear(features, self.output_weight, self.output_bias)

    def forward(self, tokens: Tensor, time: Tensor | None = None) -> Tensor:
        """Logits (B, S, V)."""
        return self.logits(self.features(tokens, time))


def dit_roles(model: nn.Module) -> dict[str, str]:
    """Roles of a model that holds one DiT: Muon takes the blocks' matrices; the adaLN and timestep
    matrices, whose inputs are no token stream, go with the vectors."""
    from nanozoo_core.optim.groups import default_roles

    roles = default_roles(model)
    for name in roles:
        parts = name.split(".")
        if "condition" in parts or "time_embedding" in parts:
            roles[name] = "vector"
        elif parts[-2:] == ["head", "weight"]:
            roles[name] = "head"
    return roles
