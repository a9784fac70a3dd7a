"""Triton kernels of compressed attention, forward and backward, and of the choice of blocks.

Forward: as flash attention, over the W compressed keys instead of T, of which a query sees those
whose block is complete. Rows of a tile are the query heads of consecutive positions, so groups of
any size fill it. Backward: probabilities anew from the forward's normalisers; the queries' gradient
by tiles of rows, those of keys and values by tiles of keys, each with its rows cut into parts that
torch adds in a fixed order: no atomics.

Choice: a second pass over the scores. A program owns the queries of R positions and goes through
the selection blocks, N at a time; for each it adds the probabilities of the compressed blocks that
share tokens with it, weighted by how many, over the heads of the group, and keeps the F best so
far. Neither the scores nor the blocks' sums, T W and T N values per head, are ever written: what
moves is q, once for each N blocks, and the keys, once for each R positions.

S sequences (batch times key heads), T positions, G query heads of a key head, K head_dim, W
compressed blocks, M rows of a tile (positions times heads), N keys or blocks of a tile, R positions
of a tile, F free blocks of a query, padded to FP.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_nsa.tiles_triton import load_pair, load_rows, score_gradients, tile_constants

# Scores of a tile stay in registers. For float32, whose products take three of the tensor cores',
# ptxas finds room for half as many rows and keys (sm_90).
TILE_ROWS = TILE_KEYS = 64
TILE_BLOCKS = 32
KEY_PROGRAMS = 512  # programs of the keys' gradients that keep a GPU busy


@triton.jit
def _num_visible(position, num_windows, WINDOW: tl.constexpr, STRIDE: tl.constexpr):
    """How many compressed blocks end at `position` or before."""
    return tl.minimum(tl.maximum(position + 1 - WINDOW + STRIDE, 0) // STRIDE, num_windows)


@triton.jit
def _tile(
    length, num_windows,
    G: tl.constexpr, K: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Of a program: its sequence, where in (S, T, G) and in (S, T, G, K) its rows lie, which rows
    there are, how many blocks each sees, and the most that one does."""
    sequence = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * M
    row = start + tl.arange(0, M)
    place = sequence * length * G + row
    at = place[:, None] * K + tl.arange(0, K)[None, :]
    visible = _num_visible(row // G, num_windows, WINDOW, STRIDE)
    most = _num_visible((start + M - 1) // G, num_windows, WINDOW, STRIDE)
    return sequence, place, at, row < length * G, visible, most


@triton.jit
def _scores(query, key, window, visible, scale, PRECISION: tl.constexpr):
    """Scores of queries with compressed blocks, -inf where a query does not see the block."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    return tl.where(window[None, :] < visible[:, None], scores, float("-inf"))


@triton.jit
def _meet(
    query, keys, values, sequence, begin, visible, num_windows, scale,
    K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """N compressed keys and values from `begin`, and the scores of queries with them."""
    window = begin + tl.arange(0, N)
    source = (sequence * num_windows + window)[:, None] * K + tl.arange(0, K)[None, :]
    key, value = load_pair(keys, values, source, (window < num_windows)[:, None], UPCAST)
    return key, value, _scores(query, key, window, visible, scale, PRECISION)


@triton.jit
def _attend(
    q,  # (S, T, G, K)
    keys, values,  # (S, W, K)
    out,  # (S, T, G, K)
    norms,  # (S, T, G) float32: log of the sum of exponentials; inf where no block is visible
    length, num_windows, scale,
    G: tl.constexpr, K: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    sequence, place, at, real, visible, most = _tile(length, num_windows, G, K, WINDOW, STRIDE, M)
    query = tl.load(q + at, mask=real[:, None], other=0.0)
    if UPCAST:  # the interpreter cannot multiply bfloat16
        query = query.to(tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    result = tl.zeros((M, K), tl.float32)
    for begin in range(0, most, N):
        _, value, scores = _meet(
            query, keys, values, sequence, begin, visible, num_windows, scale, K, N, PRECISION,
            UPCAST,
        )  # fmt: skip
        highest = tl.maximum(top, tl.max(scores, 1))
        # Rows that see nothing have no maximum; exp(-inf - 0) is 0, exp(-inf + inf) is not.
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        probs = tl.exp(scores - shift[:, None])
        keep = tl.exp(top - shift)
        total = total * keep + tl.sum(probs, 1)
        result = result * keep[:, None]
        result += tl.dot(probs.to(value.dtype), value, input_precision=PRECISION)
        top = highest
    sees = visible > 0
    result = result / tl.where(sees, total, 1.0)[:, None]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None])
    norm = tl.where(sees, top + tl.log(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(norms + place, norm, mask=real)


@triton.jit
def _query_gradients(
    q, keys, values,  # as in `_attend`
    grad,  # (S, T, G, K)
    norms, delta,  # (S, T, G); delta: sums of grad * out
    d_q,  # (S, T, G, K) out
    length, num_windows, scale,
    G: tl.constexpr, K: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    sequence, place, at, real, visible, most = _tile(length, num_windows, G, K, WINDOW, STRIDE, M)
    query, upper = load_pair(q, grad, at, real[:, None], UPCAST)
    norm, mean = load_rows(norms, delta, place, real)
    result = tl.zeros((M, K), tl.float32)
    for begin in range(0, most, N):
        key, value, scores = _meet(
            query, keys, values, sequence, begin, visible, num_windows, scale, K, N, PRECISION,
            UPCAST,
        )  # fmt: skip
        probs = tl.exp(scores - norm[:, None])
        d_scores = score_gradients(probs, upper, value, mean, PRECISION)
        result += tl.dot(d_scores, key, input_precision=PRECISION)
    tl.store(d_q + at, (result * scale).to(d_q.dtype.element_ty), mask=real[:, None])


@triton.jit
def _key_gradients(
    q, keys, values, grad, norms, delta,  # as in `_query_gradients`
    partial,  # (parts, 2, S, W, K) float32 out: of keys, of values
    length, num_windows, num_parts, scale,
    G: tl.constexpr, K: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0) // num_parts, tl.program_id(0) % num_parts
    sequence = tl.program_id(1).to(tl.int64)
    window, channel, member = tile * N + tl.arange(0, N), tl.arange(0, K), tl.arange(0, M)
    inside = (window < num_windows)[:, None]
    source = (sequence * num_windows + window)[:, None] * K + channel[None, :]
    key, value = load_pair(keys, values, source, inside, UPCAST)
    # Rows before the tile's first block is complete do not count; the others are shared out.
    first = (tile * N * STRIDE + WINDOW - 1) * G
    size = tl.cdiv(tl.cdiv(length * G - first, num_parts), M) * M
    start = first + part * size
    d_key = tl.zeros((N, K), tl.float32)
    d_value = tl.zeros((N, K), tl.float32)
    for begin in range(start, tl.minimum(start + size, length * G), M):
        row = begin + member
        real = row < length * G
        place = sequence * length * G + row
        at = place[:, None] * K + channel[None, :]
        query, upper = load_pair(q, grad, at, real[:, None], UPCAST)
        norm, mean = load_rows(norms, delta, place, real)
        visible = _num_visible(row // G, num_windows, WINDOW, STRIDE)
        scores = _scores(query, key, window, visible, scale, PRECISION)
        probs = tl.exp(scores - norm[:, None])
        d_value += tl.dot(tl.trans(probs.to(upper.dtype)), upper, input_precision=PRECISION)
        d_scores = score_gradients(probs, upper, value, mean, PRECISION)
        d_key += tl.dot(tl.trans(d_scores), query, input_precision=PRECISION)
    plane = tl.num_programs(1).to(tl.int64) * num_windows * K
    tl.store(partial + 2 * part * plane + source, d_key * scale, mask=inside)
    tl.store(partial + (2 * part + 1) * plane + source, d_value, mask=inside)


@triton.jit
def _choose(
    q,  # (S, T, G, K)
    keys,  # (S, W, K)
    norms,  # (S, T, G)
    chosen,  # (S, T, F) int32 out
    length, num_windows, scale,
    G: tl.constexpr, K: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr,
    BLOCK: tl.constexpr, INIT: tl.constexpr, LOCAL: tl.constexpr, F: tl.constexpr,
    FP: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    LAST: tl.constexpr = 0x7FFFFFFF
    SPAN: tl.constexpr = WINDOW // STRIDE  # strides of a compressed block
    PLACES: tl.constexpr = BLOCK // STRIDE + SPAN - 1  # compressed blocks that touch a block
    sequence = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * R
    t, channel, column = start + tl.arange(0, R), tl.arange(0, K), tl.arange(0, N)
    real = t < length
    row = sequence * length + t
    visible = _num_visible(t, num_windows, WINDOW, STRIDE)
    end = t // BLOCK - LOCAL  # the last block that is not forced
    most = (tl.minimum(start + R, length) - 1) // BLOCK - LOCAL + 1
    # Score and block in one number: of equal scores, which are not negative, the lower block is
    # the larger number. -1 is no block.
    best = tl.full((R, FP), -1, tl.int64)
    for begin in range(INIT, most, N):
        block = begin + column
        scores = tl.zeros((R, N), tl.float32)
        for head in range(G):
            at = (row * G + head)[:, None] * K + channel[None, :]
            query = tl.load(q + at, mask=real[:, None], other=0.0)
            norm = tl.load(norms + row * G + head, mask=real, other=float("inf"))
            if UPCAST:
                query = query.to(tl.float32)
            for place in range(PLACES):
                window = block * (BLOCK // STRIDE) + place - (SPAN - 1)
                shared = tl.minimum(window * STRIDE + WINDOW, (block + 1) * BLOCK)
                shared = shared - tl.maximum(window * STRIDE, block * BLOCK)  # tokens
                inside = (window >= 0) & (window < num_windows)
                source = (sequence * num_windows + window)[:, None] * K + channel[None, :]
                key = tl.load(keys + source, mask=inside[:, None], other=0.0)
                if UPCAST:
                    key = key.to(tl.float32)
                products = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
                seen = (window >= 0)[None, :] & (window[None, :] < visible[:, None])
                products = tl.where(seen, products, float("-inf"))
                weight = (shared // STRIDE).to(tl.float32)
                scores += weight[None, :] * tl.exp(products - norm[:, None])
        number = scores.to(tl.int32, bitcast=True).to(tl.int64) << 32
        number = number | (LAST - block)[None, :].to(tl.int64)
        number = tl.where(block[None, :] <= end[:, None], number, -1)
        # The larger of each pair of a rising and a falling list are the best of both.
        best = tl.maximum(tl.bitonic_merge(best), tl.topk(number, FP))
    best = tl.bitonic_merge(best, descending=True)
    found = tl.where(best < 0, -1, LAST - (best & LAST)).to(tl.int32)
    slot = tl.arange(0, FP)
    at = row[:, None] * F + slot[None, :]
    tl.store(chosen + at, found, mask=real[:, None] & (slot < F)[None, :])


def compressed_attention_triton(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int,
    stride: int,
    block: int,
    init_blocks: int,
    local_blocks: int,
    num_free: int,
) -> tuple[Tensor, Tensor]:
    """Attention of q (B, Hk, T, G, K) over the compressed blocks of `window` tokens, one every
    `stride`, that are complete at each query, and 0 where none is; keys, values: (B, Hk, W, K). And
    the blocks of `block` tokens that its probabilities choose, forced ones left out.

    Returns: (B, Hk, T, G, K), and (B, Hk, T, num_free) int32, best first, -1 where there is none.
    """
    assert q.shape[-1] >= 16, "tl.dot needs tiles of at least 16"
    dtype = torch.promote_types(torch.promote_types(q.dtype, keys.dtype), values.dtype)
    batch, heads, given = *q.shape[:2], q.dtype
    q, keys, values = (x.flatten(0, 1).to(dtype).contiguous() for x in (q, keys, values))
    out, norms = _Compressed.apply(q, keys, values, window, stride)
    blocks = (block, init_blocks, local_blocks, num_free)
    chosen = _choice(q.detach(), keys.detach(), norms, window, stride, *blocks)
    return out.to(given).unflatten(0, (batch, heads)), chosen.unflatten(0, (batch, heads))


class _Compressed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, keys: Tensor, values: Tensor, window: int, stride: int
    ) -> tuple[Tensor, Tensor]:
        out, norms = _forward(q, keys, values, window, stride)
        ctx.save_for_backward(q, keys, values, out, norms)
        ctx.sizes = window, stride
        ctx.mark_non_differentiable(norms)
        return out, norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, values, out, norms = ctx.saved_tensors
        grad = grad.to(q.dtype).contiguous()
        return (*_backward(grad, q, keys, values, out, norms, *ctx.sizes), None, None)


def _constants(q: Tensor, window: int, stride: int) -> dict[str, Any]:
    num_warps = 4 if q.shape[3] * q.element_size() <= 128 else 8
    return tile_constants(q) | {"WINDOW": window, "STRIDE": stride, "num_warps": num_warps}


def _tiles(q: Tensor) -> dict[str, int]:
    """Rows and keys of a tile."""
    parts = 2 if q.element_size() > 2 else 1
    return {"M": TILE_ROWS // parts, "N": TILE_KEYS // parts}


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::nsa_compressed_forward", mutates_args=())
def _forward(
    q: Tensor, keys: Tensor, values: Tensor, window: int, stride: int
) -> tuple[Tensor, Tensor]:
    """The result and its normalisers (S, T, G)."""
    num_sequences, length, group, width = q.shape
    out = torch.empty_like(q)
    norms = torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
    if q.numel():
        tiles = _tiles(q)
        _attend[(triton.cdiv(length * group, tiles["M"]), num_sequences)](
            q, keys, values, out, norms, length, keys.shape[1], 1 / math.sqrt(width),
            **tiles, **_constants(q, window, stride),
        )  # fmt: skip
    return out, norms


@_forward.register_fake
def _(q, keys, values, window, stride):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("nanozoo::nsa_compressed_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, norms: Tensor,
    window: int, stride: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, keys and values."""
    num_sequences, length, group, width = q.shape
    num_windows = keys.shape[1]
    if keys.numel() == 0 or q.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(keys), torch.zeros_like(values)
    d_q = torch.empty_like(q)
    delta = (grad.float() * out.float()).sum(-1)
    constants, tiles = _constants(q, window, stride), _tiles(q)
    scale, num_rows = 1 / math.sqrt(width), length * group
    _query_gradients[(triton.cdiv(num_rows, tiles["M"]), num_sequences)](
        q, keys, values, grad, norms, delta, d_q, length, num_windows, scale, **tiles, **constants
    )
    num_tiles = triton.cdiv(num_windows, tiles["N"])
    num_parts = max(1, KEY_PROGRAMS // (num_tiles * num_sequences))
    num_parts = min(num_parts, triton.cdiv(num_rows, tiles["M"]))
    partial = torch.empty(num_parts, 2, *keys.shape, device=q.device, dtype=torch.float32)
    _key_gradients[(num_tiles * num_parts, num_sequences)](
        q, keys, values, grad, norms, delta, partial, length, num_windows, num_parts, scale,
        **tiles, **constants,
    )  # fmt: skip
    d_keys, d_values = (partial[:, i].sum(0).to(keys.dtype) for i in range(2))
    return d_q, d_keys, d_values


@_backward.register_fake
def _(grad, q, keys, values, out, norms, window, stride):
    return torch.empty_like(q), torch.empty_like(keys), torch.empty_like(values)


@torch.library.custom_op("nanozoo::nsa_choice", mutates_args=())
def _choice(
    q: Tensor,
    keys: Tensor,
    norms: Tensor,
    window: int,
    stride: int,
    block: int,
    init_blocks: int,
    local_blocks: int,
    num_free: int,
) -> Tensor:
    """The chosen blocks (S, T, F) int32."""
    num_sequences, length, _, width = q.shape
    chosen = torch.empty(num_sequences, length, num_free, device=q.device, dtype=torch.int32)
    if chosen.numel():
        padded = max(2, triton.next_power_of_2(num_free))
        rows = max(16, min(TILE_ROWS, 2048 // padded))  # the lists stay in registers
        _choose[(triton.cdiv(length, rows), num_sequences)](
            q, keys, norms, chosen, length, keys.shape[1], 1 / math.sqrt(width),
            BLOCK=block, INIT=init_blocks, LOCAL=local_blocks, F=num_free, FP=padded,
            R=rows, N=max(TILE_BLOCKS, padded), **_constants(q, window, stride),
        )  # fmt: skip
    return chosen


@_choice.register_fake
def _(q, keys, norms, window, stride, block, init_blocks, local_blocks, num_free):
    return q.new_empty((*q.shape[:2], num_free), dtype=torch.int32)
