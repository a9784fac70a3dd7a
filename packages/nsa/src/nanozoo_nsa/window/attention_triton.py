"""Triton kernels of attention over the nearest tokens, forward and backward.

As flash attention, over the keys that a tile's rows can see. Rows are the query heads of
consecutive positions, so that groups of any size fill a tile and meet each key once: a tile of M
rows spans about M / G positions, and reads them and the `size` - 1 tokens before. Keys and values
are read where they lie, once for each tile, and no mask is ever written. Backward: probabilities
anew from the forward's normalisers; the queries' gradient by tiles of rows, those of keys and
values by tiles of keys, each of which meets the rows of N + `size` - 1 positions: no atomics.

S sequences (batch times key heads), T positions, G query heads of a key head, K head_dim, M rows of
a tile (positions times heads), N keys of a tile.
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

TILE_ROWS = TILE_KEYS = 64  # half for float32, whose products take three of the tensor cores'


@triton.jit
def _tile(length, G: tl.constexpr, K: tl.constexpr, M: tl.constexpr):
    """Of a program: its sequence, its rows' positions, where in (S, T, G) and in (S, T, G, K) they
    lie, which rows there are, and its first and last position."""
    sequence = tl.program_id(1).to(tl.int64) * length
    start = tl.program_id(0) * M
    row = start + tl.arange(0, M)
    place = sequence * G + row
    at = place[:, None] * K + tl.arange(0, K)[None, :]
    last = tl.minimum((start + M - 1) // G, length - 1)
    return sequence, row // G, place, at, row < length * G, start // G, last


@triton.jit
def _scores(query, key, token, position, size, scale, PRECISION: tl.constexpr):
    """(M, N): scores, -inf for tokens behind a row's position or `size` before it."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    behind = position[:, None] - token[None, :]
    return tl.where((behind >= 0) & (behind < size), scores, float("-inf"))


@triton.jit
def _meet(
    query, k, v, sequence, begin, position, length, size, scale,
    K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """N keys and values from `begin`, and the scores of the rows with them."""
    token = begin + tl.arange(0, N)
    source = (sequence + token)[:, None] * K + tl.arange(0, K)[None, :]
    key, value = load_pair(k, v, source, (token < length)[:, None], UPCAST)
    return key, value, _scores(query, key, token, position, size, scale, PRECISION)


@triton.jit
def _attend(
    q,  # (S, T, G, K)
    k, v,  # (S, T, K)
    out,  # (S, T, G, K)
    norms,  # (S, T, G) float32: log of the sum of exponentials
    length, size, scale,
    G: tl.constexpr, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    sequence, position, place, at, real, start, last = _tile(length, G, K, M)
    query = tl.load(q + at, mask=real[:, None], other=0.0)
    if UPCAST:  # the interpreter cannot multiply bfloat16
        query = query.to(tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    result = tl.zeros((M, K), tl.float32)
    for begin in range(tl.maximum(start - size + 1, 0), last + 1, N):
        _, value, scores = _meet(
            query, k, v, sequence, begin, position, length, size, scale, K, N, PRECISION, UPCAST
        )
        highest = tl.maximum(top, tl.max(scores, 1))
        # Rows that have seen nothing yet have no maximum; exp(-inf - 0) is 0, exp(-inf + inf) not.
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
    q, k, v,  # as in `_attend`
    grad,  # (S, T, G, K)
    norms, delta,  # (S, T, G); delta: sums of grad * out
    d_q,  # (S, T, G, K) out
    length, size, scale,
    G: tl.constexpr, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    sequence, position, place, at, real, start, last = _tile(length, G, K, M)
    query, upper = load_pair(q, grad, at, real[:, None], UPCAST)
    norm, mean = load_rows(norms, delta, place, real)
    result = tl.zeros((M, K), tl.float32)
    for begin in range(tl.maximum(start - size + 1, 0), last + 1, N):
        key, value, scores = _meet(
            query, k, v, sequence, begin, position, length, size, scale, K, N, PRECISION, UPCAST
        )
        probs = tl.exp(scores - norm[:, None])
        d_scores = score_gradients(probs, upper, value, mean, PRECISION)
        result += tl.dot(d_scores, key, input_precision=PRECISION)
    tl.store(d_q + at, (result * scale).to(d_q.dtype.element_ty), mask=real[:, None])


@triton.jit
def _key_gradients(
    q, k, v, grad, norms, delta,  # as in `_query_gradients`
    d_k, d_v,  # (S, T, K) out
    length, size, scale,
    G: tl.constexpr, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(1).to(tl.int64) * length
    start = tl.program_id(0) * N
    token, channel, member = start + tl.arange(0, N), tl.arange(0, K), tl.arange(0, M)
    inside = (token < length)[:, None]
    source = (sequence + token)[:, None] * K + channel[None, :]
    key, value = load_pair(k, v, source, inside, UPCAST)
    d_key = tl.zeros((N, K), tl.float32)
    d_value = tl.zeros((N, K), tl.float32)
    for begin in range(start * G, tl.minimum(start + N - 1 + size, length) * G, M):
        row = begin + member
        real = row < length * G
        place = sequence * G + row
        at = place[:, None] * K + channel[None, :]
        query, upper = load_pair(q, grad, at, real[:, None], UPCAST)
        # Rows that are not there get probability exp(-inf) = 0.
        norm, mean = load_rows(norms, delta, place, real)
        scores = _scores(query, key, token, row // G, size, scale, PRECISION)
        probs = tl.exp(scores - norm[:, None])
        d_value += tl.dot(tl.trans(probs.to(upper.dtype)), upper, input_precision=PRECISION)
        d_scores = score_gradients(probs, upper, value, mean, PRECISION)
        d_key += tl.dot(tl.trans(d_scores), query, input_precision=PRECISION)
    tl.store(d_k + source, (d_key * scale).to(d_k.dtype.element_ty), mask=inside)
    tl.store(d_v + source, d_value.to(d_v.dtype.element_ty), mask=inside)


def window_attention_triton(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """Attention of q (B, Hk, T, G, K) over the last `size` tokens, the query's own among them.
    k, v: (B, Hk, T, K). Returns: (B, Hk, T, G, K)."""
    assert q.shape[-1] >= 16, "tl.dot needs tiles of at least 16"
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    shape = q.shape
    q, k, v = (x.flatten(0, 1).to(dtype).contiguous() for x in (q, k, v))
    return _Window.apply(q, k, v, min(size, shape[2])).view(shape)


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
        out, norms = _forward(q, k, v, size)
        ctx.save_for_backward(q, k, v, out, norms)
        ctx.size = size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norms = ctx.saved_tensors
        grad = grad.to(q.dtype).contiguous()
        return (*_backward(grad, q, k, v, out, norms, ctx.size), None)


def _constants(q: Tensor) -> dict[str, Any]:
    parts = 2 if q.element_size() > 2 else 1
    num_warps = 4 if q.shape[3] * q.element_size() <= 128 else 8
    tiles = {"M": TILE_ROWS // parts, "N": TILE_KEYS // parts}
    return tile_constants(q) | tiles | {"num_warps": num_warps}


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::nsa_window_forward", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The result and its normalisers (S, T, G)."""
    num_sequences, length, group, width = q.shape
    out = torch.empty_like(q)
    norms = torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
    if q.numel():
        constants = _constants(q)
        _attend[(triton.cdiv(length * group, constants["M"]), num_sequences)](
            q, k, v, out, norms, length, size, 1 / math.sqrt(width), **constants
        )
    return out, norms


@_forward.register_fake
def _(q, k, v, size):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("nanozoo::nsa_window_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, norms: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    num_sequences, length, group, width = q.shape
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if q.numel() == 0:
        return d_q, d_k, d_v
    delta = (grad.float() * out.float()).sum(-1)
    constants, sizes = _constants(q), (length, size, 1 / math.sqrt(width))
    _query_gradients[(triton.cdiv(length * group, constants["M"]), num_sequences)](
        q, k, v, grad, norms, delta, d_q, *sizes, **constants
    )
    _key_gradients[(triton.cdiv(length, constants["N"]), num_sequences)](
        q, k, v, grad, norms, delta, d_k, d_v, *sizes, **constants
    )
    return d_q, d_k, d_v


@_backward.register_fake
def _(grad, q, k, v, out, norms, size):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
