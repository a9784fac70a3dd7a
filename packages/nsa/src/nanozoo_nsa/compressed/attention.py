"""Attention over the compressed keys, and the blocks that its probabilities choose.

B batch, Hk key and value heads, G query heads of each, T sequence, K head_dim, W compressed blocks,
M hidden width of the MLP, C queries of a chunk, F free blocks of a query, N selection blocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.machine.precision import finest_dtype, widened
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.attention import Implementation, uses_triton
from nanozoo_nsa.selected.choice import chosen_by

# Scores of a chunk of queries stay in a core's second-level cache; a GPU needs them to be many.
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 1 << 18, 1 << 26


def compressed_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    grid: Grid,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention over the compressed blocks that are complete at each query, and the blocks that its
    probabilities choose. A query that sees no block gets zeros.

    By Triton kernels where `selected_attention` is, whatever the size of a group; its torch forms
    go with the plain one here. Documents come as rows of their own, which both forms take.

    Args: q: (B, Hk, T, G, K); keys, values: (B, Hk, W, K).
    Returns: (B, Hk, T, G, K), and (B, Hk, T, F) int32 for `selected_attention`, without gradient.
    """
    if uses_triton(q, grid, implementation):
        from nanozoo_nsa.compressed.attention_triton import compressed_attention_triton

        return compressed_attention_triton(
            q, keys, values, window=grid.window, stride=grid.stride, block=grid.block,
            init_blocks=grid.init_blocks, local_blocks=grid.local_blocks, num_free=grid.num_free,
        )  # fmt: skip
    return _CompressedAttention.apply(q, keys, values, grid)


def _chunks(q: Tensor, num_windows: int, grid: Grid) -> list[tuple[int, int]]:
    """Runs of queries, whole steps each, whose scores fit into one chunk."""
    batch, heads, length, group, _ = q.shape
    widest = max(num_windows, 1, grid.num_blocks(length))
    elements = CHUNK_ELEMENTS if q.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    size = elements // (batch * heads * group * widest)
    size = max(grid.stride, size // grid.stride * grid.stride)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _probabilities(
    q: Tensor, keys: Tensor, start: int, stop: int, grid: Grid, scale: float
) -> Tensor:
    """(B Hk, C, G, visible blocks) for queries start .. stop - 1."""
    group = q.shape[3]
    visible = grid.num_windows(stop)
    queries = q[:, :, start:stop].flatten(2, 3).flatten(0, 1)  # (B Hk, C G, K)
    probs = queries @ keys[:, :visible].mT
    probs = probs.mul_(scale).unflatten(1, (stop - start, group))
    fixed = grid.num_windows(start + 1)  # the first query sees these, and so do all
    ends = torch.arange(fixed, visible, device=q.device) * grid.stride + grid.window - 1
    positions = torch.arange(start, stop, device=q.device)
    hidden = ends > positions[:, None]  # (C, visible - fixed)
    probs[..., fixed:].masked_fill_(hidden[:, None], -torch.inf)
    probs = probs.softmax(-1)
    blind = min(max(grid.window - 1 - start, 0), stop - start)  # queries before the first block
    probs[:, :blind] = 0
    return probs


class _CompressedAttention(torch.autograd.Function):
    """By hand, in chunks of queries: no (T, W) matrix is kept, and chunks stop at the last block
    that they see. Everything is float32 (float64 for such inputs), and the probabilities that
    choose blocks are what `chosen_by` asks for."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, keys: Tensor, values: Tensor, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        ctx.grid, ctx.dtypes = grid, (q.dtype, keys.dtype, values.dtype)
        q, keys, values = (widened(x) for x in (q, keys, values))
        ctx.save_for_backward(q, keys, values)
        fine = finest_dtype(q.device)
        fine_q, fine_keys = q.to(fine), keys.flatten(0, 1).to(fine)
        flat_values = values.flatten(0, 1)
        batch, heads, length, _, width = q.shape
        out = torch.zeros_like(q)
        chosen = torch.empty(
            batch, heads, length, grid.num_free, dtype=torch.int32, device=q.device
        )
        with torch.autocast(q.device.type, enabled=False):
            for start, stop in _chunks(q, keys.shape[2], grid):
                positions = torch.arange(start, stop, device=q.device)
                visible = grid.num_windows(stop)
                if visible == 0:  # then all blocks of the past are forced
                    chosen[:, :, start:stop] = -1
                    continue
                probs = _probabilities(fine_q, fine_keys, start, stop, grid, 1 / math.sqrt(width))
                found = probs.to(q.dtype).flatten(1, 2) @ flat_values[:, :visible]
                out[:, :, start:stop] = found.view_as(out[:, :, start:stop])
                choice = chosen_by(probs, positions, grid, grid.num_blocks(stop))
                chosen[:, :, start:stop] = choice.unflatten(0, (batch, heads))
        ctx.mark_non_differentiable(chosen)
        return out.to(ctx.dtypes[0]), chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, values = ctx.saved_tensors
        grid, scale = ctx.grid, 1 / math.sqrt(q.shape[-1])
        grad = widened(grad)
        flat_keys, flat_values = keys.flatten(0, 1), values.flatten(0, 1)
        d_q, d_keys, d_values = (
            torch.zeros_like(x, memory_format=torch.contiguous_format)
            for x in (q, flat_keys, flat_values)
        )
        with torch.autocast(q.device.type, enabled=False):
            for start, stop in _chunks(q, keys.shape[2], grid):
                visible = grid.num_windows(stop)
                if visible == 0:
                    continue
                probs = _probabilities(q, flat_keys, start, stop, grid, scale).flatten(1, 2)
                queries = q[:, :, start:stop].flatten(2, 3).flatten(0, 1)
                upper = grad[:, :, start:stop].flatten(2, 3).flatten(0, 1)  # (B Hk, C G, K)
                d_values[:, :visible] += probs.mT @ upper
                d_probs = upper @ flat_values[:, :visible].mT
                d_probs -= torch.linalg.vecdot(d_probs, probs)[..., None]
                d_scores = d_probs.mul_(probs).mul_(scale)
                part = d_q[:, :, start:stop]
                part.copy_((d_scores @ flat_keys[:, :visible]).view_as(part))
                d_keys[:, :visible] += d_scores.mT @ queries
        types = ctx.dtypes
        return (
            d_q.to(types[0]),
            d_keys.view_as(keys).to(types[1]),
            d_values.view_as(values).to(types[2]),
            None,
        )
