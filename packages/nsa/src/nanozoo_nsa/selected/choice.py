"""Which blocks a query reads: scores from the compressed branch, and the choice.

B batch, Hk key and value heads, G query heads of each, T queries, N selection blocks, W compressed
blocks, F free blocks of a query (those that scores choose), n all blocks of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_nsa.config import Grid


def chosen_by(probs: Tensor, positions: Tensor, grid: Grid, num_blocks: int) -> Tensor:
    """The free blocks of queries, from their attention over the compressed blocks.

    Whole sequences and decoding both ask here, so that they round at the same place: a score that
    is rounded before eq. 9 in one and behind it in the other breaks ties in two ways. Their sums
    are taken in different orders, of one query and of many, which float64 makes too small to see in
    float32; the Triton kernels, and devices without it, take them in float32, where equal blocks
    may part.

    Args:
        probs: (..., G, W) of the query heads of a group, in float64 from the scores on, where the
            device has it; without gradient.
        positions: (...) of the queries, or what broadcasts to it.

    Returns: (..., F) int32, -1 where there is no block left.
    """
    return choose(importance(probs.sum(-2).float(), grid, num_blocks), positions, grid)


def importance(probs: Tensor, grid: Grid, num_blocks: int) -> Tensor:
    """Eq. 9: how much attention each selection block gets, from that of the compressed blocks.

    Args: probs: (..., W) float32, summed over the query heads of a group.
    Returns: (..., N): sum over i of probs_i * tokens that i and the block share / stride.
    """
    weights = grid.overlap
    step = grid.block // grid.stride
    before = grid.window // grid.stride - 1
    after = max(0, num_blocks * step - probs.shape[-1])
    padded = torch.nn.functional.pad(probs, (before, after))
    end = (num_blocks - 1) * step + 1
    scores = weights[0] * padded[..., 0:end:step]
    for place, weight in enumerate(weights[1:], start=1):
        scores.add_(padded[..., place : place + end : step], alpha=weight)
    return scores


def choose(scores: Tensor, positions: Tensor, grid: Grid) -> Tensor:
    """The free blocks with the highest scores; of equals the first.

    A query reads `grid.num_selected` blocks, of which the first and the nearest are forced. Where
    some block is forced twice, every block of the past is forced, so the free ones are always
    looked for between the two.

    Args:
        scores: (..., N), not negative, no gradient; compared in float32.
        positions: (...) of the queries, or what broadcasts to it.

    Returns: (..., F) int32, -1 where there is no block left.
    """
    num_blocks = scores.shape[-1]
    shape = (*scores.shape[:-1], grid.num_free)
    if num_blocks == 0 or grid.num_free == 0:
        return torch.full(shape, -1, dtype=torch.int32, device=scores.device)
    block = torch.arange(num_blocks, device=scores.device)
    end = positions // grid.block - grid.local_blocks  # the last block that is not forced
    is_free = (block >= grid.init_blocks) & (block <= end[..., None])
    # A float32 that is not negative sorts as its bits do; the low half breaks ties.
    keys = scores.float().contiguous().view(torch.int32).long().bitwise_left_shift_(32)
    keys += num_blocks - 1 - block
    keys.masked_fill_(~is_free, -1)
    best = keys.topk(min(grid.num_free, num_blocks)).values
    chosen = num_blocks - 1 - best.bitwise_and(0xFFFFFFFF)
    chosen.masked_fill_(best < 0, -1)
    missing = grid.num_free - chosen.shape[-1]
    return torch.nn.functional.pad(chosen, (0, missing), value=-1).int()


def forced_blocks(positions: Tensor, grid: Grid) -> Tensor:
    """(..., init + local) int32: the blocks that queries at `positions` (...) must read, each once,
    -1 for those that are not there."""
    current = (positions // grid.block)[..., None]
    first = torch.arange(grid.init_blocks, device=positions.device)
    nearest = torch.arange(1 - grid.local_blocks, 1, device=positions.device) + current
    first = torch.where(first <= current - grid.local_blocks, first, -1)
    return torch.cat([first, nearest.clamp(min=-1)], dim=-1).int()


def all_blocks(chosen: Tensor, positions: Tensor, grid: Grid) -> Tensor:
    """(..., n) int32: forced and chosen blocks (..., F) of queries at `positions` (...)."""
    forced = forced_blocks(positions, grid).expand(*chosen.shape[:-1], -1)
    return torch.cat([forced, chosen], dim=-1)


def block_mask(blocks: Tensor, num_blocks: int) -> Tensor:
    """(..., N) bool: which blocks are among `blocks` (..., n)."""
    mask = torch.zeros(*blocks.shape[:-1], num_blocks + 1, dtype=torch.bool, device=blocks.device)
    return mask.scatter_(-1, blocks.long() % (num_blocks + 1), True)[..., :-1]
