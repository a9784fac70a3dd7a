"""Attention over whole blocks of keys: those that every query must read, and those it chose.

B batch, Hk key and value heads, G query heads of each, T sequence, K head_dim, F chosen blocks of a
query, C tokens of a block, N blocks, P forced blocks of a query.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nanozoo_core.nn.attention import sdpa
from nanozoo_core.ops.backend import use_triton
from nanozoo_nsa.config import TRITON_BLOCKS, TRITON_HEADS, Grid
from nanozoo_nsa.selected.choice import all_blocks, block_mask
from nanozoo_nsa.selected.gathered import gathered_attention

Implementation = Literal["auto", "triton", "dense_mask", "gather"]


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    grid: Grid,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the tokens of a query's blocks up to its own position: forced
    blocks, the query's own among them, and `chosen` ones, which the heads of a group share.

    Args:
        q: (B, Hk, T, G, K); k, v: (B, Hk, T, K).
        chosen: (B, Hk, T, F) int32, different blocks that are not forced, -1 where there is none.

    Returns: (B, Hk, T, G, K).
    """
    if implementation == "dense_mask":
        return masked_attention(q, k, v, chosen, grid)
    if uses_triton(q, grid, implementation):
        from nanozoo_nsa.selected.attention_triton import selected_attention_triton

        positions = torch.arange(q.shape[2], device=q.device)
        return selected_attention_triton(q, k, v, all_blocks(chosen, positions, grid), grid.block)
    return gathered_attention(q, k, v, chosen, grid)


def uses_triton(q: Tensor, grid: Grid, implementation: Implementation) -> bool:
    """Whether attention of q (..., K) runs by kernels: if asked for, and under auto on a GPU where
    they take its sizes and type. Raises: ValueError when they are asked for and cannot run."""
    if implementation == "auto":
        fits = grid.block in TRITON_BLOCKS and q.shape[-1] in TRITON_HEADS
        return fits and use_triton("auto", q)
    return implementation == "triton" and use_triton("triton", q)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
    """The same through torch's attention with a mask over all keys, B H T T booleans: the reference
    of the faster forms."""
    _, heads, length, group, _ = q.shape
    positions = torch.arange(length, device=q.device)
    blocks = block_mask(all_blocks(chosen, positions, grid), grid.num_blocks(length))
    mask = blocks.repeat_interleave(grid.block, dim=-1)[..., :length]  # (B, Hk, T, T)
    mask = mask & (positions <= positions[:, None])
    mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)  # (B, H, T, T)
    out = sdpa(q.transpose(2, 3).flatten(1, 2), k, v, mask=mask)
    return out.unflatten(1, (heads, group)).transpose(2, 3)
