"""Depthwise causal convolution over a sequence, as Mamba puts it before its scan.

The reference (`causal_conv1d_reference`) and the fast torch form (`causal_conv1d_torch`) are here,
the Triton twin in `causal_conv_triton.py`.

Shapes: B batch, L sequence, C channels, K kernel width, T positions of a block.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.ops.backend import check_shapes, segment_starts, use_triton

Activation = Literal["silu"] | None


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = "silu",
    initial_state: Tensor | None = None, segments: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y_t = activation(bias + sum_j weight_j x_{t-K+1+j}), channel by channel.

    Args:
        x: (B, L, C).
        weight: (C, K); its last column multiplies the current position.
        bias: (C,) or None.
        activation: silu or None.
        initial_state: (B, C, K-1), the inputs before the first position, oldest first; None is
            zeros.
        segments: (B, L) integers; no position sees inputs of before its number last changed. The
            initial state belongs to the first segment.

    Returns: (B, L, C) of x's type.
    """
    _check_shapes(x, weight, bias, initial_state, segments)
    if use_triton("auto", x):
        from nanozoo_core.ops.causal_conv_triton import causal_conv1d_triton as convolve
    else:
        convolve = causal_conv1d_torch
    silu, options = activation == "silu", {"initial_state": initial_state, "segments": segments}
    return convolve(x, weight, bias, silu=silu, **options)


def causal_conv1d_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    activation: Activation = "silu",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One position of `causal_conv1d`.

    Args:
        state: (B, C, K-1), the last inputs, oldest first.
        x: (B, C).

    Returns: y (B, C) of x's type and the new state.
    """
    window = torch.cat([state, x[..., None].to(state.dtype)], dim=-1)  # (B, C, K)
    y = (window * weight).sum(-1)
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype), window[..., 1:]


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = "silu",
    initial_state: Tensor | None = None, segments: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The sum over taps as it is written; arguments as in `causal_conv1d`."""
    length, width = x.shape[1], weight.shape[1]
    padded = _with_history(x, width, initial_state)
    keeps = None if segments is None else _keeps(segments, width)
    y = torch.zeros_like(x) if bias is None else bias.expand(x.shape)
    for j in range(width):
        term = padded[:, j : j + length]
        if keeps is not None:
            term = term * keeps[:, :, j, None]
        y = y + term * weight[:, j]
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def causal_conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = True,
    initial_state: Tensor | None = None, segments: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`causal_conv1d` in plain torch with a hand-written backward pass (differentiable once).

    Forward plus backward takes 0.75 to 0.85 of the CPU time of a grouped `conv1d` on the transposed
    input (core/benchmarks/ssm.py).
    """
    dtype = wide_dtype(x)
    padded = _with_history(x.to(dtype), weight.shape[1], initial_state)
    if bias is None:
        bias = torch.zeros(x.shape[2], dtype=dtype, device=x.device)
    keeps = None if segments is None else _keeps(segments, weight.shape[1])
    y = _CausalConv.apply(padded, weight.to(dtype), bias.to(dtype), keeps, silu)
    return y.to(x.dtype)


class _CausalConv(torch.autograd.Function):
    """Block after block of positions, so that the K passes over a block find it in cache; the
    values before the activation are recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor, keeps: Tensor | None, silu: bool
    ) -> Tensor:
        batch, padded_length, channels = padded.shape
        length = padded_length - weight.shape[1] + 1
        taps = weight.T.contiguous()  # (K, C)
        # 2^17 values are 512 kB, a part of a core's second-level cache.
        block = max(16, 2**17 // (batch * channels)) if padded.device.type == "cpu" else length
        blocks = [slice(at, min(at + block, length)) for at in range(0, length, block)]
        y = padded.new_empty(batch, length, channels)
        for at in blocks:
            total = _weighted_sum(padded, taps, bias, keeps, at)
            y[:, at] = F.silu(total, inplace=True) if silu else total
        ctx.save_for_backward(padded, taps, bias, keeps)
        ctx.blocks, ctx.silu = blocks, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        padded, taps, bias, keeps = ctx.saved_tensors
        grad_padded, grad_taps, grad_bias = (torch.zeros_like(t) for t in (padded, taps, bias))
        for at in ctx.blocks:
            grad = grad_y[:, at]  # (B, T, C)
            products = torch.empty_like(grad, memory_format=torch.contiguous_format)
            by_position = products.flatten(0, 1).mT  # (C, B T)
            ones = grad.new_ones(by_position.shape[1])
            if ctx.silu:
                total = _weighted_sum(padded, taps, bias, keeps, at)
                grad = torch.ops.aten.silu_backward(grad, total)
            grad_bias += grad.sum((0, 1))
            for j, tap in enumerate(taps):
                seen = slice(at.start + j, at.stop + j)
                grad_j = grad if keeps is None else grad * keeps[:, at, j, None]
                grad_padded[:, seen].addcmul_(grad_j, tap)
                torch.mul(grad_j, padded[:, seen], out=products)
                grad_taps[j].addmv_(by_position, ones)  # faster than a sum over two axes
        return grad_padded, grad_taps.T, grad_bias, None, None


def _weighted_sum(
    padded: Tensor, taps: Tensor, bias: Tensor, keeps: Tensor | None, at: slice
) -> Tensor:
    """The convolution at some positions before the activation, (B, T, C)."""
    total = bias
    for j, tap in enumerate(taps):
        seen = padded[:, at.start + j : at.stop + j]
        if keeps is not None:
            seen = seen * keeps[:, at, j, None]
        total = torch.addcmul(total, seen, tap) if j == 0 else total.addcmul_(seen, tap)
    return total


def _with_history(x: Tensor, width: int, initial_state: Tensor | None) -> Tensor:
    """The K - 1 inputs before the first position, then x: (B, K - 1 + L, C)."""
    if initial_state is None:
        return F.pad(x, (0, 0, width - 1, 0))
    return torch.cat([initial_state.mT.to(x.dtype), x], dim=1)


def _keeps(segments: Tensor, width: int) -> Tensor:
    """(B, L, K) bool: whether tap j of a position reads an input of the position's own segment."""
    runs = segment_starts(segments).cumsum(1)  # (B, L)
    return F.pad(runs, (width - 1, 0)).unfold(1, width, 1) == runs[..., None]


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    initial_state: Tensor | None, segments: Tensor | None,
) -> None:  # fmt: skip
    if x.dim() != 3 or weight.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; want (B, L, C) and "
            "(C, K) with L >= 1"
        )
    (batch, length, channels), width = x.shape, weight.shape[1]
    check_shapes(
        weight=(weight, (channels, width)),
        bias=(bias, (channels,)),
        initial_state=(initial_state, (batch, channels, width - 1)),
        segments=(segments, (batch, length)),
    )
