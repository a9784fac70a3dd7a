"""Attention over the nearest tokens.

B batch, Hk key and value heads, G query heads of each, H = Hk G, T sequence, K head_dim.
"""

from __future__ import annotations

from torch import Tensor

from nanozoo_core.nn.attention import attend
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.attention import Implementation, uses_triton


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, size: int, grid: Grid, implementation: Implementation = "auto"
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the last `size` tokens, the query's own among them.

    By Triton kernels where `selected_attention` is; its torch forms go with torch's attention here,
    which on a GPU copies keys and values for each block of queries that meets them.

    Args: q: (B, Hk, T, G, K); k, v: (B, Hk, T, K).
    Returns: (B, Hk, T, G, K).
    """
    if uses_triton(q, grid, implementation):
        from nanozoo_nsa.window.attention_triton import window_attention_triton

        return window_attention_triton(q, k, v, size)
    return banded_attention(q, k, v, size)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """The same by torch's attention, each block of queries with the blocks of keys that it sees."""
    heads = q.transpose(2, 3)  # (B, Hk, G, T, K)
    y = attend(heads.flatten(1, 2), k, v, window=size - 1)  # (B, H, T, K)
    return y.view_as(heads).transpose(2, 3)
