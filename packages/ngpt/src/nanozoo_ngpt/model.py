"""nGPT (Loshchilov et al. 2024, "nGPT: Normalized Transformer with Representation Learning on the
Hypersphere", arXiv 2410.01131).

B batch, T sequence, D model_dim, H heads, K head_dim, F mlp_dim, V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import widened
from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.padding import padded_size, padding_bias
from nanozoo_core.nn.rotary import Angles, apply_rotary, rotary_angles
from nanozoo_ngpt.config import NGPTConfig
from nanozoo_ngpt.kernels.sphere_step import EPS, sphere_step, unit


class Scale(nn.Module):
    """A learned vector s = p * init / size, with p starting at `size`.

    Adam moves every p by the rate alike, so init / size is the vector's own factor on the rate.
    """

    def __init__(self, length: int, *, init: float, size: float) -> None:
        super().__init__()
        self.stored = nn.Parameter(torch.empty(length))
        self.init, self.size = init, size

    def forward(self) -> Tensor:
        return self.stored * (self.init / self.size)


class UnitLinear(nn.Linear):
    """A matrix of unit vectors: its rows (axis 1) or columns (axis 0), whichever face the stream.

    With `reparam` the weight may have any length and is divided by it here.
    """

    def __init__(self, fan_in: int, fan_out: int, *, axis: int, reparam: bool) -> None:
        self.axis, self.reparam = axis, reparam
        super().__init__(fan_in, fan_out, bias=False)

    def unit_weight(self) -> Tensor:
        return unit(self.weight, self.axis) if self.reparam else self.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unit_weight())


class UnitEmbedding(nn.Embedding):
    """A table of unit rows."""

    axis = 1

    def __init__(self, num_rows: int, dim: int, *, reparam: bool) -> None:
        self.reparam = reparam
        super().__init__(num_rows, dim)

    def unit_weight(self) -> Tensor:
        return unit(self.weight) if self.reparam else self.weight

    def forward(self, tokens: Tensor) -> Tensor:
        rows = super().forward(tokens)
        return unit(rows) if self.reparam else rows


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """s . (x W^T), with s multiplied into the smaller of the weight and the product."""
    if x.shape[:-1].numel() < weight.shape[1]:
        y = F.linear(x, weight)
        return y * scale.to(y.dtype)
    return F.linear(x, weight * scale[:, None])


class Attention(nn.Module):
    """softmax(sqrt(K) q k^T) v, with q and k turned, then of unit length, then scaled by s_qk."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        dim, reparam = config.model_dim, config.weight_norm == "reparam"
        self.head_dim = config.head_dim
        self.split = (2 * dim, dim)
        self.scale_first = config.qk_scale == "before_rope"
        self.qkv = UnitLinear(dim, 3 * dim, axis=1, reparam=reparam)
        self.qkv.weight.muon_split = (dim, dim, dim)  # type: ignore[attr-defined]
        self.out = UnitLinear(dim, dim, axis=0, reparam=reparam)
        self.sqk: Scale | None = None
        if config.qk_scale != "none":
            self.sqk = Scale(dim, init=1.0, size=config.stored_size(config.sqk_scale))

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | None, layer: int) -> Tensor:
        qk, v = self.qkv(x).split(self.split, dim=-1)
        q, k = self.directions(self.heads(qk), angles).chunk(2, dim=1)  # (B, H, T, K)
        v = self.heads(v)
        y = attend(q, k, v) if cache is None else cache.attend(layer, q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, n K) to (B, n, T, K)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def directions(self, qk: Tensor, angles: Angles) -> Tensor:
        """Queries and keys (B, 2 H, T, K), each sqrt(K) long before s_qk: the 1 / sqrt(K) of
        standard attention then makes the sqrt(K) of the paper."""
        if self.sqk is None:
            return rms_norm(apply_rotary(qk, *angles), EPS)
        scale = self.sqk().view(-1, 1, self.head_dim).repeat(2, 1, 1).to(qk.dtype)  # (2 H, 1, K)
        if self.scale_first:
            return apply_rotary(rms_norm(qk, EPS) * scale, *angles)
        return rms_norm(apply_rotary(qk, *angles), EPS) * scale


class MLP(nn.Module):
    """W_down (u . silu(w)) with u = sqrt(D) s_u . (W_u x) and w = sqrt(D) s_v . (W_v x).

    sqrt(D) gives w, a product of unit vectors, variance 1; on u it cancels in the norm that follows
    and stands as in the authors' code.
    """

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        dim, hidden = config.model_dim, config.mlp_dim
        reparam = config.weight_norm == "reparam"
        self.up = UnitLinear(dim, 2 * hidden, axis=1, reparam=reparam)
        self.up.weight.muon_split = (hidden, hidden)  # type: ignore[attr-defined]
        self.suv = Scale(2 * hidden, init=1.0, size=1.0)
        self.down = UnitLinear(hidden, dim, axis=0, reparam=reparam)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.suv() * math.sqrt(x.shape[-1])
        u, w = scaled_linear(x, self.up.unit_weight(), scale).chunk(2, dim=-1)  # (B, T, F)
        return self.down(u * F.silu(w))


class Block(nn.Module):
    """Two steps on the sphere, each a learned share |alpha| of the way to a sublayer's proposal."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        init, size = config.first_alpha, config.stored_size(config.alpha_scale)
        self.attention = Attention(config)
        self.alpha_attention = Scale(config.model_dim, init=init, size=size)
        self.mlp = MLP(config)
        self.alpha_mlp = Scale(config.model_dim, init=init, size=size)

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | None, layer: int) -> Tensor:
        x = sphere_step(x, self.attention(x, angles, cache, layer), self.alpha_attention().abs())
        return sphere_step(x, self.mlp(x), self.alpha_mlp().abs())


class NGPT(nn.Module):
    """The decoder whose weights and hidden states are unit vectors; it has no norm layers."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_context = config.seq_len
        self.has_stepped = False  # since this object was made, and so perhaps loaded
        padded = padded_size(self.vocab_size, config.pad_vocab_to)
        dim, reparam = config.model_dim, config.weight_norm == "reparam"

        self.embedding = UnitEmbedding(padded, dim, reparam=reparam)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        if not config.tie_embeddings:
            self.head = UnitLinear(dim, padded, axis=1, reparam=reparam)
        self.sz = Scale(padded, init=1.0, size=config.stored_size(config.sz_scale))
        bias = padding_bias(self.vocab_size, padded)
        self.register_buffer("output_bias", bias, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        matrices, embeddings   N(0, 1), then of unit length: uniform on the sphere
        scales                 their `size`: s is `init`
        """
        for module in self.modules():
            if isinstance(module, UnitLinear | UnitEmbedding):
                module.weight.normal_()
            elif isinstance(module, Scale):
                module.stored.fill_(module.size)
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Puts every weight vector back on the sphere; also where the weights are sharded."""
        for module in self.modules():
            if isinstance(module, UnitLinear | UnitEmbedding):
                project_(module.weight, module.axis)

    @property
    def token_weight(self) -> Tensor:
        """(P, D): the unit rows that score each token."""
        table = self.embedding if self.config.tie_embeddings else self.head
        return table.unit_weight()

    @property
    def output_weight(self) -> Tensor:
        """(P, D): the same with s_z multiplied in; `output_bias` switches off those past V."""
        return self.token_weight * self.sz()[:, None]

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The stream (B, T, D) after the last block; `cache` continues a sequence."""
        length = tokens.shape[1]
        positions = (
            torch.arange(length, device=tokens.device) if cache is None else cache.positions(length)
        )
        angles = rotary_angles(positions, self.config.head_dim, base=self.config.rope_base)
        x = self.embedding(tokens)  # (B, T, D)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, cache, layer)
        if cache is not None:
            cache.advance(length)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return scaled_linear(features, self.token_weight, self.sz())[..., : self.vocab_size]

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        weight = self.embedding.weight
        return KVCache(
            self.config.num_layers,
            batch_size,
            max_length,
            self.config.num_heads,
            self.config.head_dim,
            device=weight.device,
            dtype=weight.dtype,
        )


def project_(weight: Tensor, axis: int) -> None:
    """Divides `weight` (m, n) in place by its lengths along `axis`, in float32 or better.

    A length that rounding alone keeps from 1 is left, so that projecting again changes no bit: a
    resumed run projects once more than one that was never interrupted. A sharded weight gets its
    lengths from all ranks.
    """
    wide = widened(weight)
    # Not vector_norm, which over columns takes three times as long on a CPU and adds one by one.
    norm = wide.square().sum(axis, keepdim=True).sqrt()
    is_unit = (norm - 1).abs() < 4 * torch.finfo(norm.dtype).eps
    factor = torch.where(is_unit, torch.ones_like(norm), norm.clamp_min(EPS).reciprocal())
    weight.mul_(factor)


Model = NGPT
