"""Attention by torch's fused kernels, with windows and document masks.

B batch, H query heads, Hk key and value heads (H is a multiple), T queries, S keys, K head_dim,
C block length, N blocks, M blocks of keys that a block of queries meets.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.attention_form import current_form
from nanozoo_core.machine.precision import product_dtype
from nanozoo_core.ops.product_attention import product_attention

# Kept probabilities grow with the square of the length, and the kernel's advantage with them.
MOST_KEPT_KEYS = 1024
# Blocks of queries waste up to a block of keys each, and small ones the width of a product.
_MIN_BLOCK, _SMALL_BLOCK = 32, 64


def attend(
    q: Tensor, k: Tensor, v: Tensor, *,
    is_causal: bool = True, window: int | None = None, documents: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T / sqrt(K)) v over the keys that each query may see.

    The last query stands at the position of the last key, so T < S continues a sequence.

    Args:
        q: (B, H, T, K); k, v: (B, Hk, S, K).
        window: how many earlier positions a query sees besides its own; None is all of them.
        documents: (B, T) document numbers, T == S; a query sees its own document alone.

    Returns: (B, H, T, K).
    Raises: ValueError for a window without causality, or documents with T != S.
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    if window is not None and not is_causal:
        raise ValueError(f"window={window} needs is_causal=True")
    if documents is not None and num_queries != num_keys:
        raise ValueError(f"documents need as many queries ({num_queries}) as keys ({num_keys})")
    if window is not None and window >= num_keys - 1:
        window = None

    if window is not None and num_queries == num_keys:
        block = max(_MIN_BLOCK, min((window + 1) // 2, _SMALL_BLOCK), (window + 1) // 4)
        # Below twice the keys of a block a mask over all of them is the faster form on a CPU.
        if num_queries >= 2 * block * (1 + math.ceil(window / block)):
            return _attend_banded(q, k, v, window, block, documents)
    if window is not None and num_queries == 1:
        k, v, window = k[:, :, -window - 1 :], v[:, :, -window - 1 :], None

    if window is None and documents is None:
        if not is_causal or num_queries == 1:
            return sdpa(q, k, v)
        if num_queries == num_keys:
            # is_causal lets the kernel skip the upper triangle, which a mask cannot.
            return sdpa(q, k, v, is_causal=True)

    mask = torch.ones((), dtype=torch.bool, device=q.device)
    if is_causal:
        steps = torch.arange(num_keys, device=q.device)
        behind = steps[num_keys - num_queries :, None] - steps  # (T, S): query minus key position
        mask = behind >= 0 if window is None else (behind >= 0) & (behind <= window)
    if documents is not None:
        mask = mask & (documents[:, :, None] == documents[:, None, :])[:, None]  # (B, 1, T, S)
    return sdpa(q, k, v, mask=mask)


def _attend_banded(
    q: Tensor, k: Tensor, v: Tensor, window: int, block: int, documents: Tensor | None
) -> Tensor:
    """Windowed attention where each block of queries meets its own and the M - 1 blocks of keys
    before that reach `window` back. The work is M C keys per query instead of S."""
    batch, _, length, _ = q.shape
    num_blocks = math.ceil(length / block)
    num_before = math.ceil(window / block)  # M - 1
    start, end = num_before * block, num_blocks * block - length
    q_blocks = F.pad(q, (0, 0, 0, end)).unflatten(2, (num_blocks, block)).transpose(1, 2)

    def runs(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, start, end)).unflatten(2, (-1, block)).transpose(1, 2)
        parts = [x[:, i : i + num_blocks] for i in range(num_before + 1)]
        return torch.cat(parts, dim=3).flatten(0, 1)  # (B N, Hk, M C, K)

    steps = torch.arange(start + block, device=q.device) - start
    behind = steps[start:, None] - steps  # (C, M C)
    first = torch.arange(num_blocks, device=q.device)[:, None] * block
    exists = first + steps >= 0  # (N, M C): nothing stands before the first block
    mask = ((behind >= 0) & (behind <= window)) & exists[:, None, None]
    mask = mask.expand(batch, -1, -1, -1, -1)  # (B, N, 1, C, M C)
    if documents is not None:
        padded = F.pad(documents, (start, end)).unflatten(1, (-1, block))
        parts = [padded[:, i : i + num_blocks] for i in range(num_before + 1)]
        keys = torch.cat(parts, dim=2)  # (B, N, M C)
        mask = mask & (padded[:, num_before:, :, None] == keys[:, :, None, :])[:, :, None]
    out = sdpa(q_blocks.flatten(0, 1), runs(k), runs(v), mask=mask.flatten(0, 1))
    return out.unflatten(0, (batch, num_blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v, by torch's kernel or the form that the run has chosen.

    Args:
        q: (B, H, T, K); k, v: (B, Hk, S, K).
        mask: broadcast to (B, H, T, S); true where a key is seen, or a number added to its score.
        dropout: probability that a weight of the average is dropped.
    """
    grouped = q.shape[1] != k.shape[1]
    kernel = partial(
        F.scaled_dot_product_attention,
        dropout_p=dropout,
        is_causal=is_causal,
        enable_gqa=grouped,
    )
    form = current_form() if q.device.type == "cpu" else "kernel"
    if form == "kernel" or (dtype := product_dtype(q)) != torch.bfloat16:
        return kernel(q, k, v, attn_mask=mask)
    is_bias = mask is not None and mask.dtype != torch.bool
    if form == "float32":
        with torch.autocast("cpu", enabled=False):
            bias = mask.float() if mask is not None and is_bias else mask
            return kernel(q.float(), k.float(), v.float(), attn_mask=bias).to(dtype)
    if not _suits_products(q, k, mask, dropout):
        return kernel(q, k, v, attn_mask=mask)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    bias = mask.to(dtype) if mask is not None and is_bias else mask
    return product_attention(q, k, v, bias=bias, is_causal=is_causal)


def _suits_products(q: Tensor, k: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether probabilities are worth keeping: for a gradient, and of not too many keys."""
    is_trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k))
    is_constant = mask is None or not mask.requires_grad
    return is_trained and is_constant and dropout == 0 and k.shape[2] <= MOST_KEPT_KEYS
