"""Triton kernels of causal attention within very many short sequences, forward and backward.

As many patches as fit are folded into one tile of 64 rows of one head, whose scores are masked to
blocks on the diagonal. That multiplies more than needed, up to 64 / P times, and still waits for
memory: a tile of head width 64 in bfloat16 moves 32 kB and takes 1 MFLOP forward, where an H100
has 10 MFLOP's time. Tiles of 128 rows would double the products. The forward reads q, k, v and
writes the result, 4 N P H K values; the backward makes the scores anew and needs nothing else
saved: it reads 4 times as many and writes 3.

N patches, P positions of each, H heads, K head_dim, padded to KP, M rows of a tile.
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

from nanozoo_core.ops.optional_triton import product_precision

TILE_ROWS = 64  # half for float32, whose products take three of the tensor cores'


@triton.jit
def _probabilities(query, key, member, scale, P: tl.constexpr, PRECISION: tl.constexpr):
    """(M, M) float32: each row's weights of the rows of its patch up to itself."""
    # Rows past the last patch of the tile see themselves, so no maximum is -inf.
    seen = (member[:, None] // P == member[None, :] // P) & (member[:, None] >= member[None, :])
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    scores = tl.where(seen, scores, float("-inf"))
    probs = tl.exp(scores - tl.max(scores, 1)[:, None])
    return probs / tl.sum(probs, 1)[:, None]


@triton.jit
def _tile(
    q, k, v, num_patches, patch_stride, place_stride, head_stride,
    P: tl.constexpr, H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, M: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values of a program, its rows, and where in (N, P, H, K) they lie, with a
    mask."""
    # Heads of the same rows run side by side: together they read whole rows.
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    member, channel = tl.arange(0, M), tl.arange(0, KP)
    patch = tile.to(tl.int64) * (M // P) + member // P
    inside = (member < M // P * P) & (patch < num_patches)
    real = inside[:, None] & (channel < K)[None, :]
    source = (patch * patch_stride + member % P * place_stride)[:, None]
    source = source + head * head_stride + channel[None, :]
    query = tl.load(q + source, mask=real, other=0.0)
    key = tl.load(k + source, mask=real, other=0.0)
    value = tl.load(v + source, mask=real, other=0.0)
    if UPCAST:  # the interpreter cannot multiply bfloat16
        query, key, value = query.to(tl.float32), key.to(tl.float32), value.to(tl.float32)
    at = ((patch * P + member % P) * H + head)[:, None] * K + channel[None, :]
    return query, key, value, member, at, real


@triton.jit
def _attend(
    q, k, v,  # (N, P, H, K), with the same strides
    out,  # (N, P, H, K)
    num_patches, patch_stride, place_stride, head_stride, scale,
    P: tl.constexpr, H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, M: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    query, key, value, member, at, real = _tile(
        q, k, v, num_patches, patch_stride, place_stride, head_stride, P, H, K, KP, M, UPCAST
    )
    probs = _probabilities(query, key, member, scale, P, PRECISION)
    result = tl.dot(probs.to(value.dtype), value, input_precision=PRECISION)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def _gradients(
    q, k, v,  # (N, P, H, K), with the same strides
    grad,  # (N, P, H, K)
    d_q, d_k, d_v,  # (N, P, H, K) out
    num_patches, patch_stride, place_stride, head_stride, scale,
    P: tl.constexpr, H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, M: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Of q, k and v; the probabilities are made anew."""
    query, key, value, member, at, real = _tile(
        q, k, v, num_patches, patch_stride, place_stride, head_stride, P, H, K, KP, M, UPCAST
    )
    upper = tl.load(grad + at, mask=real, other=0.0)
    if UPCAST:
        upper = upper.to(tl.float32)
    probs = _probabilities(query, key, member, scale, P, PRECISION)
    d_value = tl.dot(tl.trans(probs.to(upper.dtype)), upper, input_precision=PRECISION)
    tl.store(d_v + at, d_value.to(d_v.dtype.element_ty), mask=real)
    d_probs = tl.dot(upper, tl.trans(value), input_precision=PRECISION)
    mean = tl.sum(probs * d_probs, 1)[:, None]
    d_scores = (probs * (d_probs - mean) * scale).to(query.dtype)
    d_query = tl.dot(d_scores, key, input_precision=PRECISION)
    tl.store(d_q + at, d_query.to(d_q.dtype.element_ty), mask=real)
    d_key = tl.dot(tl.trans(d_scores), query, input_precision=PRECISION)
    tl.store(d_k + at, d_key.to(d_k.dtype.element_ty), mask=real)


def patch_attention_triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention within each of N patches. Strides are free where q, k and v share them, as
    parts of one projection do; else they are copied.

    Args: q, k, v: (N, P, H, K) of one type, P at most 32 and K at most 128.
    Returns: (N, P, H, K).
    """
    assert q.shape[1] <= TILE_ROWS // 2, "a patch must fit into a tile"
    assert q.shape[3] <= 128, "a tile must fit into a processor's registers"
    assert q.dtype == k.dtype == v.dtype
    if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return _PatchAttention.apply(q, k, v)


class _PatchAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _forward(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        return _backward(grad.to(q.dtype).contiguous(), q, k, v)


def _launch(kernel: Any, q: Tensor, *others: Tensor) -> None:
    num_patches, size, num_heads, width = q.shape
    if q.numel() == 0:
        return
    rows = TILE_ROWS if q.element_size() <= 2 else TILE_ROWS // 2
    kernel[(triton.cdiv(num_patches, rows // size) * num_heads,)](
        q, *others, num_patches, *q.stride()[:3], 1 / math.sqrt(width),
        P=size, H=num_heads, K=width, KP=max(16, triton.next_power_of_2(width)), M=rows,
        PRECISION=product_precision(q.dtype),
        UPCAST=not q.is_cuda,
        num_warps=4 if width * q.element_size() <= 128 else 8,
    )  # fmt: skip


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::megabyte_patch_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = q.new_empty(q.shape)
    _launch(_attend, q, k, v, out)
    return out


@_forward.register_fake
def _(q, k, v):
    return q.new_empty(q.shape)


@torch.library.custom_op("nanozoo::megabyte_patch_attention_backward", mutates_args=())
def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    d_q, d_k, d_v = (q.new_empty(q.shape) for _ in range(3))
    _launch(_gradients, q, k, v, grad, d_q, d_k, d_v)
    return d_q, d_k, d_v


@_backward.register_fake
def _(grad, q, k, v):
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
