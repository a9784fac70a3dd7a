"""Selected attention on a CPU: dense products of blocks with blocks, and no mask over all keys.

The forced blocks of a block of queries are the same for all of them: one product. The chosen ones
are turned around: the queries that chose a block are gathered into tiles, which meet it in one
product. A tile of R queries is read once for C keys, where gathering keys would read C keys for
each query. Partial results meet by their normalisers (log of the sum of exponentials).

B batch, Hk key and value heads, G query heads of each, S = B Hk sequences, T positions, padded to
whole blocks, K head_dim, C tokens of a block, N blocks of a sequence, P forced blocks of a query, F
chosen blocks of a query, J tiles, R queries of a tile.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.machine.precision import widened
from nanozoo_nsa.config import Grid

# Of queries copied into tiles at a time: a few passes over them should hit the cache.
CHUNK_ELEMENTS = 1 << 20
TILE_ROWS = (8, 16, 32, 64)


class Tiles(NamedTuple):
    """The queries start .. stop - 1 of every sequence, sorted by the blocks that they chose."""

    block: Tensor  # (J,): which of the S N blocks
    query: Tensor  # (J R,): which of the S T queries, any for padding
    is_real: Tensor  # (J R,) bool: no padding
    place: Tensor  # (S, queries, F): where in J R a choice lies, 0 where there is none
    is_there: Tensor  # (S, queries, F) bool: whether there is a choice


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
    """As `selected_attention`."""
    length = q.shape[2]
    missing = -length % grid.block
    if missing:
        q = F.pad(q, (0, 0, 0, 0, 0, missing))
        k, v = (F.pad(x, (0, 0, 0, missing)) for x in (k, v))
        chosen = F.pad(chosen, (0, 0, 0, missing), value=-1)
    if torch.compiler.is_compiling():  # by hand already, and its shapes change at every step
        out = torch.compiler.disable(_Gathered.apply)(q, k, v, chosen, grid)
    else:
        out = _Gathered.apply(q, k, v, chosen, grid)
    return out[:, :, :length]


def make_tiles(chosen: Tensor, start: int, stop: int, num_blocks: int, length: int) -> Tiles | None:
    """Sorts the choices (S, T, F) of queries start .. stop - 1 by block; None where all are -1."""
    num_sequences, _, num_free = chosen.shape
    part = chosen[:, start:stop].flatten(1).long()  # (S, queries F)
    sequence = torch.arange(num_sequences, device=chosen.device)[:, None]
    valid = (part >= 0).flatten()
    pairs = valid.nonzero()[:, 0]
    if len(pairs) == 0:
        return None
    blocks = (part + sequence * num_blocks).flatten()[pairs]
    blocks, order = blocks.sort(stable=True)
    pairs = pairs[order]
    counts = torch.bincount(blocks, minlength=num_sequences * num_blocks)
    used = int((counts > 0).sum())
    rows = next((r for r in TILE_ROWS if used * r * 2 > len(pairs)), TILE_ROWS[-1])
    tiles_of = (counts + rows - 1) // rows
    first_tile, first_pair = tiles_of.cumsum(0) - tiles_of, counts.cumsum(0) - counts
    rank = torch.arange(len(pairs), device=chosen.device) - first_pair[blocks]
    slot = first_tile[blocks] * rows + rank
    num_tiles = int(tiles_of.sum())
    query_of_pair = pairs // num_free  # of S * (stop - start)
    span = stop - start
    query_of_pair = query_of_pair // span * length + start + query_of_pair % span
    query = torch.zeros(num_tiles * rows, dtype=torch.int64, device=chosen.device)
    query[slot] = query_of_pair
    is_real = torch.zeros(num_tiles * rows, dtype=torch.bool, device=chosen.device)
    is_real[slot] = True
    place = torch.zeros_like(valid, dtype=torch.int64)
    place[pairs] = slot
    shape = (num_sequences, span, num_free)
    block = torch.arange(len(counts), device=chosen.device).repeat_interleave(tiles_of)
    return Tiles(block, query, is_real, place.view(shape), valid.view(shape))


def _spans(q: Tensor, chosen: Tensor, grid: Grid) -> list[tuple[int, int]]:
    """Runs of whole blocks of queries whose copies fit CHUNK_ELEMENTS."""
    num_sequences, length, group, width = q.shape
    per_query = num_sequences * group * width * max(chosen.shape[-1], 1)
    size = max(1, CHUNK_ELEMENTS // (per_query * grid.block)) * grid.block
    return [(start, min(start + size, length)) for start in range(0, length, size)]


class _Forced(NamedTuple):
    """The forced blocks of some blocks of queries."""

    blocks: Tensor  # (query blocks, P)
    hidden: Tensor | None  # (query blocks, P) bool: not there, or there twice; None where none is


def _forced(first: int, last: int, grid: Grid, device: torch.device) -> _Forced:
    """Of the blocks first .. last - 1 of queries: the nearest last, so that a query's own is."""
    current = torch.arange(first, last, device=device)[:, None]
    initial = torch.arange(grid.init_blocks, device=device).expand(last - first, -1)
    nearest = current + torch.arange(1 - grid.local_blocks, 1, device=device)
    index = torch.cat([initial, nearest], dim=1)
    if first >= grid.num_forced - 1:
        return _Forced(index, None)
    hidden = torch.cat([initial > current - grid.local_blocks, nearest < 0], dim=1)
    return _Forced(index.masked_fill(hidden, 0), hidden)


def _forced_scores(
    queries: Tensor, keys: Tensor, forced: _Forced, grid: Grid, scale: float
) -> Tensor:
    """(S blocks, C G, P C): scores of queries (S blocks, C G, K) with keys (S blocks, P C, K)."""
    scores = (queries @ keys.mT).mul_(scale)
    size = grid.block
    own = scores[..., -size:].unflatten(1, (size, -1))  # (S blocks, C, G, C)
    future = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu(1)
    own.masked_fill_(future[:, None], -torch.inf)
    if forced.hidden is not None:
        wide = scores.unflatten(-1, (-1, size)).unflatten(0, (-1, len(forced.blocks)))
        wide.masked_fill_(forced.hidden[:, None, :, None], -torch.inf)
    return scores


def _attend(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of each row by itself, and the log of its normaliser; uses up the scores."""
    top = scores.amax(-1, keepdim=True)
    probs = scores.sub_(top).exp_()
    total = probs.sum(-1, keepdim=True)
    return (probs @ values).div_(total), top.add_(total.log_())[..., 0]


class _Gathered(torch.autograd.Function):
    """Softmax statistics and accumulation in float32 (float64 for such inputs)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
        ctx.grid, ctx.dtypes = grid, (q.dtype, k.dtype, v.dtype)
        shape = q.shape
        # (S, T, G, K), (S, T, K), (S, T, F)
        q, k, v = (widened(x).flatten(0, 1).contiguous() for x in (q, k, v))
        chosen = chosen.flatten(0, 1).contiguous()
        out = torch.empty_like(q)
        norms = q.new_empty(q.shape[:-1])  # (S, T, G)
        with torch.autocast(q.device.type, enabled=False):
            for start, stop in _spans(q, chosen, grid):
                tiles = make_tiles(chosen, start, stop, k.shape[1] // grid.block, k.shape[1])
                _forward(q, k, v, out, norms, start, stop, tiles, grid)
        ctx.save_for_backward(q, k, v, out, norms, chosen)
        return out.view(shape).to(ctx.dtypes[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norms, chosen = ctx.saved_tensors
        grid, shape = ctx.grid, grad.shape
        grad = widened(grad).flatten(0, 1).contiguous()
        delta = torch.linalg.vecdot(grad, out)  # (S, T, G)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        with torch.autocast(q.device.type, enabled=False):
            for start, stop in _spans(q, chosen, grid):
                tiles = make_tiles(chosen, start, stop, k.shape[1] // grid.block, k.shape[1])
                span = _Backward(q, k, v, grad, norms, delta, d_q, d_k, d_v, start, stop, grid)
                span.through_forced()
                if tiles is not None:
                    span.through_tiles(tiles)
        results = d_q.view(shape), *(x.view(*shape[:3], shape[-1]) for x in (d_k, d_v))
        return (*(x.to(dtype) for x, dtype in zip(results, ctx.dtypes, strict=True)), None, None)


def _block_rows(x: Tensor, forced: _Forced, grid: Grid) -> Tensor:
    """(S blocks, P C, K): the forced blocks of x (S, T, K)."""
    blocks = x.unflatten(1, (-1, grid.block))[:, forced.blocks]  # (S, blocks, P, C, K)
    return blocks.flatten(2, 3).flatten(0, 1)


def _query_blocks(x: Tensor, start: int, stop: int, grid: Grid) -> Tensor:
    """(S blocks, C G, K): queries start .. stop - 1 of x (S, T, G, K)."""
    return x[:, start:stop].unflatten(1, (-1, grid.block)).flatten(2, 3).flatten(0, 1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, norms: Tensor, start: int, stop: int,
    tiles: Tiles | None, grid: Grid,
) -> None:  # fmt: skip
    """Writes rows start .. stop - 1 of `out` and `norms`."""
    num_sequences, _, group, width = q.shape
    scale = 1 / math.sqrt(width)
    forced = _forced(start // grid.block, stop // grid.block, grid, q.device)
    keys, values = (_block_rows(x, forced, grid) for x in (k, v))
    scores = _forced_scores(_query_blocks(q, start, stop, grid), keys, forced, grid, scale)
    found, norm = _attend(scores, values)
    found = found.view(num_sequences, stop - start, group, width)
    norm = norm.view(num_sequences, stop - start, group)
    if tiles is not None:
        scores = (_tile_rows(q, tiles) @ _tile_blocks(k, tiles, grid).mT).mul_(scale)
        part, part_norm = _attend(scores, _tile_blocks(v, tiles, grid))
        part_norm = part_norm.view(-1, group)[tiles.place]  # (S, queries, F, G)
        part_norm = part_norm.masked_fill_(~tiles.is_there[..., None], -torch.inf)
        total = torch.logaddexp(norm, part_norm.logsumexp(2))
        share = (part_norm - total[:, :, None]).exp_()
        found.mul_((norm - total).exp_()[..., None])
        found += _collect(part, tiles, share, group)
        norm = total
    out[:, start:stop] = found
    norms[:, start:stop] = norm


def _tile_rows(x: Tensor, tiles: Tiles) -> Tensor:
    """(J, R G, K): the tiles' queries of x (S, T, G, K)."""
    rows = x.flatten(0, 1).flatten(1).index_select(0, tiles.query)
    return rows.view(len(tiles.block), -1, x.shape[-1])


def _tile_blocks(x: Tensor, tiles: Tiles, grid: Grid) -> Tensor:
    """(J, C, K): the tiles' blocks of x (S, T, K)."""
    blocks = x.view(-1, grid.block * x.shape[-1]).index_select(0, tiles.block)
    return blocks.view(-1, grid.block, x.shape[-1])


def _collect(values: Tensor, tiles: Tiles, weight: Tensor | None, group: int) -> Tensor:
    """Sums the tiles' results (J, R G, K) over the choices of each query -> (S, queries, G, K).

    Args: weight: (S, queries, F, G) of each, or None for 1.
    """
    heads = torch.arange(group, device=values.device)
    index = tiles.place[..., None, :] * group + heads[:, None]  # (S, queries, G, F)
    if weight is None:
        weights = tiles.is_there.to(values.dtype)[..., None, :].expand_as(index)
    else:
        weights = weight.transpose(2, 3)
    shape = index.shape[:-1]
    total = F.embedding_bag(
        index.flatten(0, 2),
        values.flatten(0, 1),
        per_sample_weights=weights.reshape(-1, index.shape[-1]),
        mode="sum",
    )
    return total.view(*shape, -1)


class _Backward(NamedTuple):
    """Gradients through queries start .. stop - 1: d_q, written, and d_k and d_v, added to."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    norms: Tensor
    delta: Tensor
    d_q: Tensor
    d_k: Tensor
    d_v: Tensor
    start: int
    stop: int
    grid: Grid

    def through_forced(self) -> None:
        start, stop, grid = self.start, self.stop, self.grid
        num_sequences, _, group, width = self.q.shape
        forced = _forced(start // grid.block, stop // grid.block, grid, self.q.device)
        keys, values = (_block_rows(x, forced, grid) for x in (self.k, self.v))
        queries, upper = (_query_blocks(x, start, stop, grid) for x in (self.q, self.grad))
        norm, mean = (
            x[:, start:stop].reshape(len(queries), grid.block * group)
            for x in (self.norms, self.delta)
        )
        scores = _forced_scores(queries, keys, forced, grid, 1 / math.sqrt(width))
        rows, *parts = _gradients(scores, queries, keys, values, upper, norm, mean)
        self.d_q[:, start:stop] = rows.view(self.d_q[:, start:stop].shape)
        index = forced.blocks.flatten()
        for total, part in zip((self.d_k, self.d_v), parts, strict=True):
            blocks = total.view(num_sequences, -1, grid.block * width)
            blocks.index_add_(1, index, part.view(num_sequences, len(index), -1))

    def through_tiles(self, tiles: Tiles) -> None:
        group, width = self.q.shape[2:]
        keys, values = (_tile_blocks(x, tiles, self.grid) for x in (self.k, self.v))
        queries, upper = (_tile_rows(x, tiles) for x in (self.q, self.grad))
        # Padding gets probability exp(-inf) = 0.
        norm = self.norms.flatten(0, 1).index_select(0, tiles.query)
        norm = norm.masked_fill_(~tiles.is_real[:, None], torch.inf)
        mean = self.delta.flatten(0, 1).index_select(0, tiles.query)
        norm, mean = (x.view(len(tiles.block), -1) for x in (norm, mean))
        scores = (queries @ keys.mT).mul_(1 / math.sqrt(width))
        rows, *parts = _gradients(scores, queries, keys, values, upper, norm, mean)
        self.d_q[:, self.start : self.stop] += _collect(rows, tiles, None, group)
        for total, part in zip((self.d_k, self.d_v), parts, strict=True):
            blocks = total.view(-1, self.grid.block * width)
            blocks.index_add_(0, tiles.block, part.flatten(1))


def _gradients(
    scores: Tensor, queries: Tensor, keys: Tensor, values: Tensor, upper: Tensor, norm: Tensor,
    mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of the attention of rows by themselves: of queries, keys and values; uses up the scores."""
    probs = scores.sub_(norm[..., None]).exp_()
    d_scores = (upper @ values.mT).sub_(mean[..., None]).mul_(probs)
    scale = 1 / math.sqrt(keys.shape[-1])
    return (d_scores @ keys).mul_(scale), (d_scores.mT @ queries).mul_(scale), probs.mT @ upper
