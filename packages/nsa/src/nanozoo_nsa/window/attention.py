"""Attention over the nearest tokens.

B batch, Hk key and value heads, G query heads of each, H = Hk G, T sequence, K head_dim.
"""

from __future__ import annotations

from torch import Tensor

from nanozoo_core.nn.attention import attend


def window_attention(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the last `size` tokens, the query's own among them.

    Args: q: (B, Hk, T, G, K); k, v: (B, Hk, T, K).
    Returns: (B, Hk, T, G, K).
    """
    heads = q.transpose(2, 3)  # (B, Hk, G, T, K)
    y = attend(heads.flatten(1, 2), k, v, window=size - 1)  # (B, H, T, K)
    return y.view_as(heads).transpose(2, 3)
