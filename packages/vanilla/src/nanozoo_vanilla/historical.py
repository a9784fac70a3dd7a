"""The plain decoder in its historical forms, v0 .. v16 and custom, as its switches say.

    v0:  x = sqrt(D) E[tokens] + PE[0:T]                      Decoder.embed, sinusoids
         for each block:   x = LN(x + Attention(x))           PostNormBlock
                           x = LN(x + W_2 relu(W_1 x + c_1) + c_2)
         logits = x E^T                                       Decoder.logits

From v4 on blocks are PreNormBlock's. `model.Control` is where the walk ends: `custom` without a
switch computes the same with equal weights.

B batch, T sequence, D model_dim, H heads, K head_dim, F mlp_dim, V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.control import init_input_matrix
from nanozoo_core.nn.feed_forward import relu_squared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.padding import padding_bias
from nanozoo_core.nn.rotary import Angles, apply_rotary, rotary_angles
from nanozoo_vanilla.config import UNIT_EMBEDDING, VanillaConfig


def swiglu(x: Tensor) -> Tensor:
    """silu(a) b for x = [a | b] (arXiv 2002.05202, eq. 5)."""
    gate, up = x.chunk(2, dim=-1)  # (B, T, F) each
    return F.silu(gate) * up


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": relu_squared,
    "swiglu": swiglu,
}


def sinusoids(positions: Tensor, model_dim: int) -> Tensor:
    """sin(t w_i) at channel 2i and cos(t w_i) at 2i + 1, w_i = 10000^(-2i/D), float32.

    Args: positions: (T,) or (B, T). Returns: (T, D) or (B, T, D).
    Reference: arXiv 1706.03762, section 3.5. tensor2tensor puts all sines before all cosines and
    divides by D/2 - 1; we follow the paper.
    """
    cos, sin = rotary_angles(positions, model_dim)
    return torch.stack([sin, cos], dim=-1).flatten(-2)


def make_norm(config: VanillaConfig) -> Callable[[Tensor], Tensor]:
    if config.switches.norm == "rms":
        return partial(rms_norm, eps=config.eps)
    return nn.LayerNorm(config.model_dim, eps=config.eps, bias=config.switches.bias)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over earlier positions, with all heads in one projection."""

    def __init__(self, config: VanillaConfig) -> None:
        super().__init__()
        dim, bias = config.model_dim, config.switches.attn_bias
        self.num_heads = config.num_heads
        self.norm = partial(rms_norm, eps=config.eps) if config.switches.qk_norm else None
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.qkv.weight.muon_split = (dim, dim, dim)  # type: ignore[attr-defined]
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, x: Tensor, angles: Angles | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if angles is not None:
            q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)  # (B, H, T, K)
        if self.norm is not None:
            q, k = self.norm(q), self.norm(k)
        y = attend(q, k, v) if cache is None else cache.attend(layer, q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: VanillaConfig) -> None:
        super().__init__()
        bias = config.switches.bias
        self.activation = ACTIVATIONS[config.switches.activation]
        is_gated = config.switches.activation == "swiglu"
        self.up = nn.Linear(config.model_dim, config.mlp_dim * (2 if is_gated else 1), bias=bias)
        if is_gated:
            self.up.weight.muon_split = (config.mlp_dim,) * 2  # type: ignore[attr-defined]
        self.down = nn.Linear(config.mlp_dim, config.model_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention and MLP, each beside the residual stream; a subclass says where the norms stand."""

    def __init__(self, config: VanillaConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = Attention(config)
        self.norm_1 = make_norm(config)
        self.mlp = MLP(config)
        self.norm_2 = make_norm(config)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class PostNormBlock(Block):
    """x = norm(x + f(x)): no path from input to output avoids the norms."""

    def forward(
        self, x: Tensor, angles: Angles | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = self.norm_1(x + self.drop(self.attention(x, angles, cache, layer)))
        return self.norm_2(x + self.drop(self.mlp(x)))


class PreNormBlock(Block):
    """x = x + f(norm(x)): the stream itself is never normalised."""

    def forward(
        self, x: Tensor, angles: Angles | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.drop(self.attention(self.norm_1(x), angles, cache, layer))
        return x + self.drop(self.mlp(self.norm_2(x)))


class Decoder(nn.Module):
    """The decoder of a config whose preset is not control."""

    def __init__(self, config: VanillaConfig) -> None:
        super().__init__()
        switches, dim = config.switches, config.model_dim
        self.config = config
        self.max_context = config.seq_len
        is_post = switches.norm_position == "post"
        block = PostNormBlock if is_post else PreNormBlock
        self.embedding = nn.Embedding(config.num_rows, dim)
        if switches.position == "learned":
            self.position = nn.Embedding(config.seq_len, dim)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.num_layers))
        # The last post-norm block has normalised its output already.
        self.final_norm = nn.Identity() if is_post else make_norm(config)
        if not switches.tie_embeddings:
            self.head = nn.Linear(dim, config.num_rows, bias=False)
        bias = padding_bias(config.vocab_size, config.num_rows)
        self.register_buffer("output_bias", bias, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
                    xavier                       gpt2            zero_out
        embedding   N(0, 1/D)                    N(0, 0.02^2)    N(0, 1)
        position    N(0, 1/2), as the sinusoids  N(0, 0.02^2)    N(0, 0.02^2)
        qkv, up     U(+-sqrt(6 / (in + out)))    N(0, 0.02^2)    U(+-sqrt(3) * 0.5 / sqrt(in))
        out, down   U(+-sqrt(6 / (in + out)))    / sqrt(2L)      0
        head        U(+-sqrt(6 / (in + out)))    N(0, 0.02^2)    N(0, 0.001^2)
        gains 1, biases 0

        From gpt2 to zero_out one row at a time: unit_embedding has its embedding, zero_outputs its
        out and down too, small_head its head as well. q, k and v are three matrices, though one
        parameter.
        """
        switches, dim = self.config.switches, self.config.model_dim
        is_xavier = switches.init == "xavier"
        std = 1.0 if switches.init in UNIT_EMBEDDING else dim**-0.5 if is_xavier else 0.02
        nn.init.normal_(self.embedding.weight, std=std)
        if switches.position == "learned":
            nn.init.normal_(self.position.weight, std=0.5**0.5 if is_xavier else 0.02)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            for part in block.attention.qkv.weight.split(dim):
                self._init_matrix(part, is_output=False)
            self._init_matrix(block.mlp.up.weight, is_output=False)
            self._init_matrix(block.attention.out.weight, is_output=True)
            self._init_matrix(block.mlp.down.weight, is_output=True)
        if not switches.tie_embeddings:
            if switches.init in ("small_head", "zero_out"):
                nn.init.normal_(self.head.weight, std=0.001)
            else:
                self._init_matrix(self.head.weight, is_output=False)

    def _init_matrix(self, weight: Tensor, *, is_output: bool) -> None:
        init = self.config.switches.init
        if init == "xavier":
            nn.init.xavier_uniform_(weight)
        elif is_output and init in ("zero_outputs", "small_head", "zero_out"):
            nn.init.zeros_(weight)
        elif init == "zero_out":
            init_input_matrix(weight)
        else:
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * len(self.blocks) if is_output else 1))

    @property
    def output_weight(self) -> Tensor:
        """(P, D): the rows that score each token; `output_bias` switches off those past V."""
        tied = self.config.switches.tie_embeddings
        return self.embedding.weight if tied else self.head.weight

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The stream (B, T, D) before the first block, at `positions` (T,) or (B, T)."""
        switches, dim = self.config.switches, self.config.model_dim
        x = self.embedding(tokens)
        if switches.scale_embedding:
            x = math.sqrt(dim) * x
        if switches.norm_embedding:
            x = rms_norm(x, self.config.eps)
        if switches.position == "sinusoidal":
            x = x + sinusoids(positions, dim).to(x.dtype)
        elif switches.position == "learned":
            x = x + self.position(positions)
        return F.dropout(x, self.config.dropout, self.training)

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final normalised stream (B, T, D) for tokens (B, T); `cache` continues a sequence.

        Raises: ValueError when the sequence would outgrow a learned position table.
        """
        length = tokens.shape[1]
        if cache is None:
            self._check_length(length)
            positions = torch.arange(length, device=tokens.device)
        else:
            positions = cache.positions(length)
        angles = None
        if self.config.switches.position == "rope":
            width = self.config.model_dim // self.config.num_heads
            angles = rotary_angles(positions, width, base=self.config.rope_base)
        x = self.embed(tokens, positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, cache, layer)
        if cache is not None:
            cache.advance(length)
        return self.final_norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return F.linear(features, self.output_weight)[..., : self.config.vocab_size]

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Raises: ValueError when `max_length` exceeds a learned position table."""
        self._check_length(max_length)
        weight, num_heads = self.embedding.weight, self.config.num_heads
        return KVCache(
            len(self.blocks),
            batch_size,
            max_length,
            num_heads,
            self.config.model_dim // num_heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def _check_length(self, length: int) -> None:
        if self.config.switches.position == "learned" and length > self.position.num_embeddings:
            raise ValueError(
                f"{length} tokens do not fit the position table of model_cfg.seq_len="
                f"{self.position.num_embeddings}"
            )
