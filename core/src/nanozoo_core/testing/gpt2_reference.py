"""GPT-2 by its equations, for the packages that compute it.

B batch, T sequence, D model_dim, H heads, K head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def gpt2_logits(
    weights: Mapping[str, Tensor], tokens: Tensor, *, num_layers: int, num_heads: int
) -> Tensor:
    """Logits (B, T, V) of Radford et al. 2019 after each of `tokens` (B, T), head by head and
    position by position, from weights under the names of the package gpt2."""
    length = tokens.shape[1]
    x = weights["embedding.weight"][tokens] + weights["pos_embed.weight"][:length]  # (B, T, D)
    dim = x.shape[-1]
    width = dim // num_heads

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    for layer in range(num_layers):
        here = f"h.{layer}"
        q, k, v = affine(f"{here}.attn.c_attn", norm(f"{here}.ln_1", x)).split(dim, dim=-1)
        mixed = torch.zeros_like(x)
        for head in range(num_heads):
            own = slice(head * width, (head + 1) * width)
            for t in range(length):
                past = slice(0, t + 1)
                scores = (k[:, past, own] * q[:, t : t + 1, own]).sum(-1) / math.sqrt(width)
                mixed[:, t, own] = (scores.softmax(-1)[..., None] * v[:, past, own]).sum(1)
        x = x + affine(f"{here}.attn.c_proj", mixed)
        up = affine(f"{here}.mlp.c_fc", norm(f"{here}.ln_2", x))
        gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = x + affine(f"{here}.mlp.c_proj", gelu)
    return norm("ln_f", x) @ weights["embedding.weight"].T
