"""Attention by torch's fused kernels, with windows and document masks.

B batch, H query heads, Hk key and value heads (H is a multiple), T queries, S keys, K head_dim,
C block length, N blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Below these, masked attention over the whole sequence is the faster form on a CPU.
_MIN_BLOCKS = 4
_MIN_BLOCK = 32


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    is_causal: bool = True,
    window: int | None = None,
    documents: Tensor | None = None,
) -> Tensor:
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
        block = max(window, _MIN_BLOCK)
        if num_queries >= _MIN_BLOCKS * block:
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
    """Windowed attention where each block of queries meets its own and the block of keys before.

    Exact for window <= block; the work is 2 C keys per query instead of S.
    """
    batch, _, length, _ = q.shape
    num_blocks = -(-length // block)
    end = num_blocks * block - length
    q_blocks = F.pad(q, (0, 0, 0, end)).unflatten(2, (num_blocks, block)).transpose(1, 2)

    def pairs(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, block, end)).unflatten(2, (num_blocks + 1, block)).transpose(1, 2)
        return torch.cat([x[:, :-1], x[:, 1:]], dim=3).flatten(0, 1)  # (B N, Hk, 2 C, K)

    steps = torch.arange(2 * block, device=q.device)
    behind = steps[block:, None] - steps  # (C, 2 C)
    mask = ((behind >= 0) & (behind <= window)).expand(num_blocks, 1, block, 2 * block).clone()
    mask[0, :, :, :block] = False  # nothing stands before the first block
    mask = mask.expand(batch, -1, -1, -1, -1)  # (B, N, 1, C, 2 C)
    if documents is not None:
        padded = F.pad(documents, (block, end)).unflatten(1, (num_blocks + 1, block))
        keys = torch.cat([padded[:, :-1], padded[:, 1:]], dim=2)  # (B, N, 2 C)
        mask = mask & (padded[:, 1:, :, None] == keys[:, :, None, :])[:, :, None]
    out = sdpa(q_blocks.flatten(0, 1), pairs(k), pairs(v), mask=mask.flatten(0, 1))
    return out.unflatten(0, (batch, num_blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )
