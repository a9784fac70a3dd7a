"""Attention by batched matrix products that keep their probabilities for the backward pass.

A CPU with matrix units for bfloat16 multiplies faster than torch's fused kernel there walks its
blocks: up to about a thousand keys it pays to write all probabilities down, as a plain form does,
and not to make them again.

B batch, H heads, N = B H, T queries, S keys, K head_dim, C queries of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Causal queries are taken in two blocks, of which the first meets its own half of the keys alone.
# More blocks skip more of what is masked, but their products are too small to be fast.
MIN_BLOCK = 64
HIDDEN = -1e30  # far below any score, and finite


def product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v.

    Scores, probabilities and their gradients are held in the type of q. The softmax and its
    gradient compute in float32 between them, and each product sums in float32.

    Args:
        q: (B, H, T, K); k, v: (B, H, S, K), in one type.
        bias: broadcast to (B, H, T, S), without gradient; added to the scores, or a bool that is
            true where a key is seen. A query that sees none gets the mean of all values.
        is_causal: the query at t sees the keys up to t; needs T = S.

    Returns: (B, H, T, K).
    Raises: ValueError for causality with T != S or with a bias.
    """
    if is_causal and (q.shape[2] != k.shape[2] or bias is not None):
        raise ValueError(
            f"causal attention needs as many queries ({q.shape[2]}) as keys ({k.shape[2]}) and "
            f"no bias"
        )
    return _ProductAttention.apply(q, k, v, bias, is_causal)


def _blocks(num_queries: int, num_keys: int, *, is_causal: bool) -> list[tuple[slice, slice]]:
    """Queries and the keys that they meet."""
    middle = num_queries // 2
    if not is_causal or middle < MIN_BLOCK:
        return [(slice(num_queries), slice(num_keys))]
    return [(slice(middle), slice(middle)), (slice(middle, num_queries), slice(num_keys))]


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool
    ) -> Tensor:
        batch, num_heads, num_queries, head_dim = q.shape
        ctx.scale = 1 / math.sqrt(head_dim)
        with torch.autocast(q.device.type, enabled=False):
            q = (q * ctx.scale).flatten(0, 1)  # (N, T, K)
            k, v = k.flatten(0, 1), v.flatten(0, 1)  # (N, S, K)
            if bias is not None and bias.dtype == torch.bool:
                bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill_(~bias, HIDDEN)
            ctx.blocks = _blocks(num_queries, k.shape[1], is_causal=is_causal)
            out = v.new_empty(*q.shape[:2], v.shape[2])
            kept = []
            for queries, keys in ctx.blocks:
                scores = torch.bmm(q[:, queries], k[:, keys].mT)  # (N, C, S)
                if bias is not None:
                    scores.unflatten(0, (batch, num_heads)).add_(bias)
                if is_causal:
                    _hide_later_keys(scores)
                probabilities = torch.softmax(scores, -1)
                out[:, queries] = torch.bmm(probabilities, v[:, keys])
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, *kept)
        return out.unflatten(0, (batch, num_heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        heads = grad.shape[:2]
        grad_q = torch.empty_like(q)
        grad_k = grad_v = None
        with torch.autocast(q.device.type, enabled=False):
            grad = grad.flatten(0, 1)  # (N, T, K)
            # Backwards, since the last block meets every key.
            for (queries, keys), probabilities in zip(
                reversed(ctx.blocks), reversed(kept), strict=True
            ):
                above = grad[:, queries]
                shares = torch.bmm(above, v[:, keys].mT)  # (N, C, S)
                scores = torch._softmax_backward_data(shares, probabilities, -1, q.dtype)
                grad_q[:, queries] = torch.bmm(scores, k[:, keys])
                of_k = torch.bmm(scores.mT, q[:, queries])
                of_v = torch.bmm(probabilities.mT, above)
                if grad_k is None or grad_v is None:
                    grad_k, grad_v = of_k, of_v
                else:
                    grad_k[:, keys] += of_k
                    grad_v[:, keys] += of_v
            grad_q *= ctx.scale
        assert grad_k is not None
        assert grad_v is not None
        return (
            grad_q.unflatten(0, heads),
            grad_k.unflatten(0, heads),
            grad_v.unflatten(0, heads),
            None,
            None,
        )


def _hide_later_keys(scores: Tensor) -> None:
    """Of scores (N, C, S), whose last query stands at the last key."""
    num_queries = scores.shape[1]
    hidden = scores.new_full((num_queries, num_queries), -math.inf).triu_(1)
    scores[:, :, -num_queries:] += hidden
