"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

B batch, T sequence, D model_dim, H heads, K head_dim, F mlp_dim, V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.attention import sdpa
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.padding import padded_size, padding_bias
from nanozoo_gpt2.config import GPT2Config


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over earlier positions, with all heads in one projection."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        _, self.num_heads, dim = config.shape
        self.dropout = config.dropout
        self.c_attn = nn.Linear(dim, 3 * dim, bias=config.bias)
        self.c_attn.weight.muon_split = (dim, dim, dim)  # type: ignore[attr-defined]
        self.c_proj = nn.Linear(dim, dim, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        parts = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if cache is None:
            dropout = self.dropout if self.training else 0.0
            y = sdpa(q, k, v, is_causal=True, dropout=dropout)
        else:
            y = cache.attend(layer, q, k, v)  # (B, H, T, K)
        y = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        dim = config.shape.model_dim
        self.dropout = config.dropout
        self.activation = nn.GELU("tanh" if config.activation == "gelu_tanh" else "none")
        self.c_fc = nn.Linear(dim, config.mlp_dim, bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_dim, dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.activation(self.c_fc(x)))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Attention, then the MLP, each added to a stream that it reads through a LayerNorm."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        dim = config.shape.model_dim
        self.ln_1 = nn.LayerNorm(dim, eps=1e-5, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-5, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, layer)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The decoder as released: learned positions, pre-norm blocks, tied input and output."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        num_layers, _, dim = config.shape
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_context = config.seq_len
        padded = padded_size(self.vocab_size, config.pad_vocab_to)

        self.embedding = nn.Embedding(padded, dim)
        self.pos_embed = nn.Embedding(config.seq_len, dim)
        self.h = nn.ModuleList(Block(config) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(dim, eps=1e-5, bias=config.bias)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(dim, padded, bias=False)
        bias = padding_bias(self.vocab_size, padded)
        self.register_buffer("output_bias", bias, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        matrices, embeddings    N(0, 0.02^2)
        the two c_proj          N(0, 0.02^2 / 2L): each block adds to the stream twice
        LayerNorm gains         1
        biases                  0

        OpenAI draws positions with deviation 0.01; transformers and nanoGPT use 0.02, as here.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1)
            elif name.endswith("c_proj.weight"):
                parameter.normal_(std=0.02 / math.sqrt(2 * len(self.h)))
            else:
                parameter.normal_(std=0.02)

    @property
    def output_weight(self) -> Tensor:
        """(P, D): the rows that score each token; `output_bias` switches off those past V."""
        return self.embedding.weight if self.config.tie_embeddings else self.lm_head.weight

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final normalised stream (B, T, D) for tokens (B, T); `cache` continues a sequence.

        Raises: ValueError when the sequence would outgrow the position table.
        """
        length = tokens.shape[1]
        if cache is None:
            if length > self.max_context:
                raise ValueError(
                    f"{length} tokens do not fit the position table of model_cfg.seq_len="
                    f"{self.max_context}"
                )
            positions = self.pos_embed.weight[:length]  # (T, D)
        else:
            positions = self.pos_embed(cache.positions(length))  # (B, T, D)
        x = self.embedding(tokens) + positions  # (B, T, D)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, cache, layer)
        if cache is not None:
            cache.advance(length)
        return self.ln_f(x)

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return F.linear(features, self.output_weight)[..., : self.vocab_size]

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Raises: ValueError when `max_length` exceeds the position table."""
        if max_length > self.max_context:
            raise ValueError(
                f"a cache of {max_length} tokens outgrows model_cfg.seq_len={self.max_context}"
            )
        num_layers, num_heads, dim = self.config.shape
        weight = self.embedding.weight
        return KVCache(
            num_layers,
            batch_size,
            max_length,
            num_heads,
            dim // num_heads,
            device=weight.device,
            dtype=weight.dtype,
        )


Model = GPT2
