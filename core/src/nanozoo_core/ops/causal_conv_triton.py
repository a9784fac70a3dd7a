"""Triton kernels of the depthwise causal convolution with SiLU, forward and backward.

The reference and the fast torch form are in `causal_conv.py`, which chooses between them.

Memory bound: the forward pass reads x and writes y once. The backward pass reads x and y's gradient
and writes the gradient before the activation, then reads that to write x's; the values before the
activation are recomputed.

Shapes: B batch, L sequence, C channels, K kernel width, T positions of a tile.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.ops.backend import segment_runs, unit_stride

# 64 positions by 64 channels: 16 values per thread of 8 warps, and rows of 128 bytes in 16 bits.
TILE_T, TILE_C = 64, 64


@triton.jit
def _tap(x, runs, run, t, shift, channel, length, x_time, C: tl.constexpr):
    """x at positions t + shift, (T, C) float32; 0 outside the sequence and in other runs."""
    source = t + shift
    inside = (source >= 0) & (source < length)
    inside &= tl.load(runs + source, mask=inside, other=-1) == run
    offsets = source.to(tl.int64)[:, None] * x_time + channel[None, :]
    mask = inside[:, None] & (channel < C)[None, :]
    return tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(runs, length, TILE_T: tl.constexpr, TILE_C: tl.constexpr):
    """Of a program: its row, positions and channels, and the runs of the row and the positions."""
    batch = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * TILE_T + tl.arange(0, TILE_T)
    channel = tl.program_id(2) * TILE_C + tl.arange(0, TILE_C)
    runs += batch * length
    return batch, t, channel, runs, tl.load(runs + t, mask=t < length, other=-2)


@triton.jit
def _convolve(
    x,  # (B, L, C)
    weight,  # (C, K)
    bias,  # (C,)
    runs,  # (B, L)
    y,  # (B, L, C) out
    length, x_batch, x_time,
    C: tl.constexpr, K: tl.constexpr, TILE_T: tl.constexpr, TILE_C: tl.constexpr,
    REVERSE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y_t = silu(bias + sum_j weight_j x_{t-K+1+j}).

    In reverse, for the gradient of x: y_t = sum_j weight_j x_{t+K-1-j}.
    """
    batch, t, channel, runs, run = _place(runs, length, TILE_T, TILE_C)
    real = channel < C
    total = tl.zeros((TILE_T, TILE_C), tl.float32)
    for j in tl.static_range(K):
        shift = K - 1 - j if REVERSE else j - K + 1
        values = _tap(x + batch * x_batch, runs, run, t, shift, channel, length, x_time, C)
        tap = tl.load(weight + channel * K + j, mask=real, other=0.0)
        total += tap[None, :] * values
    if not REVERSE:
        total += tl.load(bias + channel, mask=real, other=0.0)[None, :]
    if SILU:
        total *= tl.sigmoid(total)
    y += batch * length * C + t.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(y, total.to(y.dtype.element_ty), mask=(t < length)[:, None] & real[None, :])


@triton.jit
def _gradients(
    x, weight, bias, runs,  # as in `_convolve`
    grad_y,  # (B, L, C)
    grad_total,  # (B, L, C) float32 out: before the activation
    partial,  # (B, tiles of L, K + 1, C) out: gradients of the taps and the bias
    length, x_batch, x_time,
    C: tl.constexpr, K: tl.constexpr, TILE_T: tl.constexpr, TILE_C: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    batch, t, channel, runs, run = _place(runs, length, TILE_T, TILE_C)
    real = channel < C
    mask = (t < length)[:, None] & real[None, :]
    x += batch * x_batch
    offsets = batch * length * C + t.to(tl.int64)[:, None] * C + channel[None, :]
    grad = tl.load(grad_y + offsets, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        total = tl.zeros((TILE_T, TILE_C), tl.float32)
        total += tl.load(bias + channel, mask=real, other=0.0)[None, :]
        for j in tl.static_range(K):
            values = _tap(x, runs, run, t, j - K + 1, channel, length, x_time, C)
            total += tl.load(weight + channel * K + j, mask=real, other=0.0)[None, :] * values
        gate = tl.sigmoid(total)
        grad *= gate * (1 + total * (1 - gate))
    tl.store(grad_total + offsets, grad, mask=mask)
    partial += (batch * tl.num_programs(1) + tl.program_id(1)) * (K + 1) * C + channel
    for j in tl.static_range(K):
        values = _tap(x, runs, run, t, j - K + 1, channel, length, x_time, C)
        tl.store(partial + j * C, tl.sum(grad * values, 0), mask=real)
    tl.store(partial + K * C, tl.sum(grad, 0), mask=real)


def causal_conv1d_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = True,
    initial_state: Tensor | None = None, segments: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The convolution on a GPU: arguments and result as in `causal_conv1d`. x may be a view of a
    larger tensor (its last stride must be 1, or it is copied)."""
    channels = x.shape[2]
    history = 0
    if initial_state is not None:
        history = initial_state.shape[2]
        x = torch.cat([initial_state.mT.to(x.dtype), x], dim=1)
    if bias is None:
        bias = torch.zeros(channels, device=x.device)
    # The history belongs to the first segment.
    runs = F.pad(segment_runs(x[:, history:], segments), (history, 0))
    x = unit_stride(x)
    return _CausalConv.apply(x, weight.float(), bias.float(), runs, silu)[:, history:]


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, runs: Tensor, silu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, runs)
        ctx.silu = silu
        return _forward(x, weight, bias, runs, silu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(grad_y.contiguous(), *ctx.saved_tensors, ctx.silu), None, None)


def _grid(x: Tensor) -> tuple[int, int, int]:
    batch, length, channels = x.shape
    return batch, triton.cdiv(length, TILE_T), triton.cdiv(channels, TILE_C)


def _constants(weight: Tensor) -> dict[str, Any]:
    channels, width = weight.shape
    return {"C": channels, "K": width, "TILE_T": TILE_T, "TILE_C": TILE_C, "num_warps": 8}


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::causal_conv1d_forward", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, runs: Tensor, silu: bool) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _convolve[_grid(x)](
        x, weight.contiguous(), bias, runs, y, x.shape[1], *x.stride()[:2],
        REVERSE=False, SILU=silu, **_constants(weight),
    )  # fmt: skip
    return y


@_forward.register_fake
def _(x, weight, bias, runs, silu):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("nanozoo::causal_conv1d_backward", mutates_args=())
def _backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, runs: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    grid, constants, weight = _grid(x), _constants(weight), weight.contiguous()
    length, (channels, width) = x.shape[1], weight.shape
    grad_total = torch.empty(x.shape, device=x.device, dtype=torch.float32)
    shape = (*grid[:2], width + 1, channels)
    partial = torch.empty(shape, device=x.device, dtype=torch.float32)
    _gradients[grid](
        x, weight, bias, runs, grad_y, grad_total, partial, length, *x.stride()[:2],
        SILU=silu, **constants,
    )  # fmt: skip
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    _convolve[grid](
        grad_total, weight, bias, runs, grad_x, length, *grad_total.stride()[:2],
        REVERSE=True, SILU=False, **constants,
    )  # fmt: skip
    sums = partial.sum((0, 1))  # (K + 1, C)
    return grad_x, sums[:width].T.contiguous(), sums[width].clone()


@_backward.register_fake
def _(grad_y, x, weight, bias, runs, silu):
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight, bias)
    )
