"""Triton kernels of selected attention, forward and backward.

Forward and the queries' gradient: a program has as many successive queries of a key head as their G
heads fill the 16 rows of a tensor core's tile. It goes through the blocks of each query, and each
block that several of them read, as neighbours mostly do, it reads once, for the rows of all of
them: at most 2 R n C K values, from the second-level cache, for R G rows of results. Gradients of
keys and values: one program per segment of at most SEGMENT queries of one block, found by sorting;
their heads, 64 rows at a time, meet the block, which stays in registers. Rows of q and of the
gradient are read once for each block of a query. Segments of a block are added by a last kernel in
a fixed order: no atomics.

S sequences (batch times key heads), T positions, G query heads of a key head, K head_dim, C tokens
of a block, N blocks of a sequence, n blocks of a query, padded to NP, P pairs of a query and a
block, R queries of a tile, M rows of it, at least R G.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_nsa.tiles_triton import load_pair, load_rows, score_gradients, tile_constants

SEGMENT = 512  # queries of one program: the first block has all T, which one would walk too long
# Rows of a tile: the fewest that a tensor core takes, as each query has its own blocks; and of
# those that meet one block.
QUERY_ROWS, BLOCK_ROWS = 16, 64


@triton.jit
def _tile(
    blocks, length,
    G: tl.constexpr, K: tl.constexpr, NUM: tl.constexpr, NP: tl.constexpr, R: tl.constexpr,
    M: tl.constexpr,
):  # fmt: skip
    """Of a program: its first position and the sequence's row of (S, T), its rows' queries, which
    of R, and positions, where in (S, T, G) and in (S, T, G, K) they lie, which rows there are, and
    the blocks that each reads, (M, NP), -1 where there is none."""
    start, number = tl.program_id(0) * R, tl.arange(0, M)
    sequence = tl.program_id(1).to(tl.int64) * length
    member = number // G
    position = start + member
    real = (member < R) & (position < length)
    place = (sequence + start) * G + number
    at = place[:, None] * K + tl.arange(0, K)[None, :]
    slot = tl.arange(0, NP)
    lists = tl.load(
        blocks + (sequence + position)[:, None] * NUM + slot[None, :],
        mask=real[:, None] & (slot < NUM)[None, :],
        other=-1,
    )
    return start, sequence, member, position, place, at, real, lists


@triton.jit
def _reads(blocks, lists, member, start, sequence, length, i, NUM: tl.constexpr):
    """The i-th pair of a query of a program and its block: the block, -1 if there is none, or if
    a query before it has read it for all; and which rows read it, (M,)."""
    query = i // NUM
    inside = start + query < length
    block = tl.load(blocks + (sequence + start) * NUM + i, mask=inside, other=-1)
    reads = tl.max((lists == block).to(tl.int32), 1)
    before = tl.max(tl.where(member < query, reads, 0), 0)
    return tl.where(before > 0, -1, block), reads > 0


@triton.jit
def _meet(
    query, k, v, block, sequence, position, reads, length, scale,
    K: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys and values of a block, and the scores of the rows with them, -inf for tokens behind a
    row's position and for rows that do not read the block."""
    token = block * C + tl.arange(0, C)
    source = (sequence + token)[:, None] * K + tl.arange(0, K)[None, :]
    key, value = load_pair(k, v, source, (token < length)[:, None], UPCAST)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    seen = reads[:, None] & (token[None, :] <= position[:, None])
    return key, value, tl.where(seen, scores, float("-inf"))


@triton.jit
def _attend(
    q,  # (S, T, G, K)
    k, v,  # (S, T, K)
    blocks,  # (S, T, n)
    out,  # (S, T, G, K)
    norms,  # (S, T, G) float32: log of the sum of exponentials
    length, scale,
    G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, NUM: tl.constexpr, NP: tl.constexpr,
    R: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    start, sequence, member, position, place, at, real, lists = _tile(
        blocks, length, G, K, NUM, NP, R, M
    )
    query = tl.load(q + at, mask=real[:, None], other=0.0)
    if UPCAST:  # the interpreter cannot multiply bfloat16
        query = query.to(tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    result = tl.zeros((M, K), tl.float32)
    for i in range(R * NUM):
        block, reads = _reads(blocks, lists, member, start, sequence, length, i, NUM)
        if block >= 0:
            _, value, scores = _meet(
                query, k, v, block, sequence, position, reads, length, scale, K, C, PRECISION,
                UPCAST,
            )  # fmt: skip
            highest = tl.maximum(top, tl.max(scores, 1))
            # Rows that have read nothing have no maximum; exp(-inf - 0) is 0, exp(-inf + inf) not.
            shift = tl.where(highest == float("-inf"), 0.0, highest)
            probs = tl.exp(scores - shift[:, None])
            keep = tl.exp(top - shift)
            total = total * keep + tl.sum(probs, 1)
            result = result * keep[:, None]
            result += tl.dot(probs.to(value.dtype), value, input_precision=PRECISION)
            top = highest
    total = tl.where(real, total, 1.0)
    result = result / total[:, None]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None])
    tl.store(norms + place, top + tl.log(total), mask=real)


@triton.jit
def _query_gradients(
    q, k, v, blocks,  # as in `_attend`
    grad,  # (S, T, G, K)
    norms, delta,  # (S, T, G); delta: sums of grad * out
    d_q,  # (S, T, G, K) out
    length, scale,
    G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, NUM: tl.constexpr, NP: tl.constexpr,
    R: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    start, sequence, member, position, place, at, real, lists = _tile(
        blocks, length, G, K, NUM, NP, R, M
    )
    query, upper = load_pair(q, grad, at, real[:, None], UPCAST)
    norm, mean = load_rows(norms, delta, place, real)
    result = tl.zeros((M, K), tl.float32)
    for i in range(R * NUM):
        block, reads = _reads(blocks, lists, member, start, sequence, length, i, NUM)
        if block >= 0:
            key, value, scores = _meet(
                query, k, v, block, sequence, position, reads, length, scale, K, C, PRECISION,
                UPCAST,
            )  # fmt: skip
            probs = tl.exp(scores - norm[:, None])
            d_scores = score_gradients(probs, upper, value, mean, PRECISION)
            result += tl.dot(d_scores, key, input_precision=PRECISION)
    tl.store(d_q + at, (result * scale).to(d_q.dtype.element_ty), mask=real[:, None])


@triton.jit
def _block_gradients(
    q, k, v, grad, norms, delta,  # as in `_query_gradients`
    queries,  # (P,): rows of (S, T), sorted by block
    block_of,  # (segments,): of S N
    starts, ends,  # (segments,): in queries
    partial,  # (segments, 2, C, K) float32 out: of keys, of values
    length, num_blocks, scale,
    G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, M: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0).to(tl.int64)
    block = tl.load(block_of + segment)
    start, end = tl.load(starts + segment), tl.load(ends + segment)
    channel, token = tl.arange(0, K), tl.arange(0, C)
    sequence = (block // num_blocks).to(tl.int64)
    place = (block % num_blocks) * C + token
    inside = (place < length)[:, None]
    source = (sequence * length + place)[:, None] * K + channel[None, :]
    key, value = load_pair(k, v, source, inside, UPCAST)
    member, head = tl.arange(0, M) // G, tl.arange(0, M) % G
    d_key = tl.zeros((C, K), tl.float32)
    d_value = tl.zeros((C, K), tl.float32)
    for begin in range(start, end, R):
        real = (begin + member < end) & (member < R)
        row = tl.load(queries + begin + member, mask=real, other=0).to(tl.int64)
        heads = row * G + head
        at = heads[:, None] * K + channel[None, :]
        query, upper = load_pair(q, grad, at, real[:, None], UPCAST)
        # Rows that are not there get probability exp(-inf) = 0.
        norm, mean = load_rows(norms, delta, heads, real)
        seen = place[None, :] <= (row - sequence * length)[:, None]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        probs = tl.exp(tl.where(seen, scores, float("-inf")) - norm[:, None])
        d_value += tl.dot(tl.trans(probs.to(upper.dtype)), upper, input_precision=PRECISION)
        d_scores = score_gradients(probs, upper, value, mean, PRECISION)
        d_key += tl.dot(tl.trans(d_scores), query, input_precision=PRECISION)
    cell = segment * 2 * C * K + token[:, None] * K + channel[None, :]
    tl.store(partial + cell, d_key * scale)
    tl.store(partial + cell + C * K, d_value)


@triton.jit
def _add_segments(
    partial,  # (segments, 2, C, K)
    first,  # (S N,): the first segment of each block
    count,  # (S N,)
    d_k, d_v,  # (S, T, K) out
    length, num_blocks, K: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    begin, size = tl.load(first + block).to(tl.int64), tl.load(count + block)
    channel, token = tl.arange(0, K), tl.arange(0, C)
    cell = token[:, None] * K + channel[None, :]
    d_key = tl.zeros((C, K), tl.float32)
    d_value = tl.zeros((C, K), tl.float32)
    for i in range(size):
        source = partial + (begin + i) * 2 * C * K + cell
        d_key += tl.load(source)
        d_value += tl.load(source + C * K)
    place = (block % num_blocks) * C + token
    at = ((block // num_blocks).to(tl.int64) * length + place)[:, None] * K + channel[None, :]
    inside = (place < length)[:, None]
    tl.store(d_k + at, d_key.to(d_k.dtype.element_ty), mask=inside)
    tl.store(d_v + at, d_value.to(d_v.dtype.element_ty), mask=inside)


def selected_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int
) -> Tensor:
    """Attention of q (B, Hk, T, G, K) over the tokens, up to its own position, of each query's
    blocks (B, Hk, T, n) int32: all different, none of the future, -1 where there is none, and the
    query's own among them. k, v: (B, Hk, T, K). Returns: (B, Hk, T, G, K).
    """
    assert min(block_size, q.shape[-1]) >= 16, "tl.dot needs tiles of at least 16"
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    shape = q.shape
    q, k, v, blocks = (x.flatten(0, 1) for x in (q, k, v, blocks))
    q, k, v = (x.to(dtype).contiguous() for x in (q, k, v))
    return _Selected.apply(q, k, v, blocks.int().contiguous(), block_size).view(shape)


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int
    ) -> Tensor:
        out, norms = _forward(q, k, v, blocks, block_size)
        ctx.save_for_backward(q, k, v, blocks, out, norms)
        ctx.block_size = block_size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, blocks, out, norms = ctx.saved_tensors
        grad = grad.to(q.dtype).contiguous()
        gradients = _backward(grad, q, k, v, blocks, out, norms, ctx.block_size)
        return (*gradients, None, None)


def _constants(q: Tensor, block_size: int) -> dict[str, Any]:
    width = q.shape[3]
    return tile_constants(q) | {
        "C": block_size,
        "num_warps": 4 if block_size * width <= 4096 else 8,
    }


def _rows(q: Tensor, at_least: int) -> dict[str, int]:
    """Rows of a tile and the queries whose heads fill them."""
    group = q.shape[2]
    rows = max(at_least, triton.next_power_of_2(group))
    return {"M": rows, "R": rows // group}


def _lists(blocks: Tensor) -> dict[str, int]:
    return {"NUM": blocks.shape[-1], "NP": triton.next_power_of_2(blocks.shape[-1])}


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::nsa_selected_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int
) -> tuple[Tensor, Tensor]:
    """The result and its normalisers (S, T, G)."""
    num_sequences, length, _, width = q.shape
    out = torch.empty_like(q)
    norms = torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
    if q.numel():
        rows = _rows(q, QUERY_ROWS)
        _attend[(triton.cdiv(length, rows["R"]), num_sequences)](
            q, k, v, blocks, out, norms, length, 1 / math.sqrt(width),
            **rows, **_lists(blocks), **_constants(q, block_size),
        )  # fmt: skip
    return out, norms


@_forward.register_fake
def _(q, k, v, blocks, block_size):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


class Segments(NamedTuple):
    """The queries of every block, in runs of at most SEGMENT; the last runs may be empty."""

    queries: Tensor  # (P,) int32 or int64: rows of (S, T), sorted by block
    block: Tensor  # (segments,)
    start: Tensor  # (segments,)
    end: Tensor  # (segments,)
    first: Tensor  # (S N,): first segment of each block
    num: Tensor  # (S N,): how many it has


def segments(blocks: Tensor, num_blocks: int) -> Segments:
    """Turns blocks (S, T, n) around, without waiting for the device."""
    num_sequences, _, num = blocks.shape
    sequence = torch.arange(num_sequences, device=blocks.device)[:, None, None]
    total = num_sequences * num_blocks
    flat = torch.where(blocks >= 0, blocks + sequence * num_blocks, total).flatten()
    flat, order = flat.sort(stable=True)
    bounds = torch.searchsorted(flat, torch.arange(total + 1, device=flat.device))
    sizes = bounds.diff()
    count = (sizes + SEGMENT - 1) // SEGMENT
    last = count.cumsum(0)
    first = last - count
    number = torch.arange(total + blocks.numel() // SEGMENT, device=flat.device)
    block = torch.searchsorted(last, number, right=True)
    is_real = block < total
    block = block.clamp(max=total - 1)
    start = bounds[block] + (number - first[block]) * SEGMENT
    end = torch.where(is_real, torch.minimum(start + SEGMENT, bounds[block + 1]), start)
    return Segments(order // num, block, start, end, first, count)


@torch.library.custom_op("nanozoo::nsa_selected_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, out: Tensor, norms: Tensor,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    num_sequences, length, _, width = q.shape
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if q.numel() == 0:
        return d_q, d_k, d_v
    delta = (grad.float() * out.float()).sum(-1)
    constants, scale = _constants(q, block_size), 1 / math.sqrt(width)
    rows = _rows(q, QUERY_ROWS)
    _query_gradients[(triton.cdiv(length, rows["R"]), num_sequences)](
        q, k, v, blocks, grad, norms, delta, d_q, length, scale,
        **rows, **_lists(blocks), **constants,
    )  # fmt: skip
    num_blocks = triton.cdiv(length, block_size)
    found = segments(blocks, num_blocks)
    partial = torch.empty(
        len(found.block), 2, block_size, width, device=q.device, dtype=torch.float32
    )
    _block_gradients[(len(found.block),)](
        q, k, v, grad, norms, delta, found.queries, found.block, found.start, found.end, partial,
        length, num_blocks, scale, **_rows(q, BLOCK_ROWS), **constants,
    )  # fmt: skip
    _add_segments[(num_sequences * num_blocks,)](
        partial, found.first, found.num, d_k, d_v, length, num_blocks, K=width, C=block_size
    )
    return d_q, d_k, d_v


@_backward.register_fake
def _(grad, q, k, v, blocks, out, norms, block_size):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
