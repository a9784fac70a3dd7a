"""Dechunking: smooth the chunk vectors, give each position the vector of its chunk, add a residual.

    zb_k = P_k z_k + (1 - P_k) zb_{k-1}                 (zb_{-1} = 0; no past where starts_k)
    y_t  = ste(c_t) zb_{index_t} + residual_t           (ste: 1 forward, identity backward)

The smoothing is core's linear recurrence. Of the spreading the gradients are, with g = dL/dy,
dL/dzb_k = sum of g over chunk k and dL/dc_t = <g_t, zb_{index_t}>.

Shapes: B batch, M chunks (right-padded), L positions, D channels.
Reference: arXiv 2507.07955, section 2.2.2 (smoothing module, confidence, straight-through).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.ops.linear_recurrence import linear_recurrence
from nanozoo_core.ops.optional_triton import jit, tl, triton


def dechunk(
    values: Tensor, probs: Tensor, index: Tensor, confidence: Tensor, residual: Tensor, *,
    starts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The two equations above, differentiable in values, probs, confidence and residual.

    Args:
        values: z (B, M, D), any floating type.
        probs: P (B, M) in [0, 1].
        index: (B, L) int64, the chunk of each position, never falling along L.
        confidence: c (B, L); its value has no effect on the result, only on gradients.
        residual: (B, L, D).
        starts: (B, M) bool, chunks that forget everything before them.

    Returns: y (B, L, D) in float32 (float64 if values is).
    """
    if torch.compiler.is_compiling():  # by hand already, and its shapes change at every step
        return torch.compiler.disable(dechunk)(
            values, probs, index, confidence, residual, starts=starts
        )
    return _Spread.apply(smooth(values, probs, starts=starts), index, confidence, residual)


def smooth(values: Tensor, probs: Tensor, *, starts: Tensor | None = None) -> Tensor:
    """zb (B, M, D) in float32 (float64 if values is); arguments as in `dechunk`."""
    probs = probs.to(wide_dtype(values))
    keep = 1 - probs if starts is None else (1 - probs).masked_fill(starts, 0.0)
    return linear_recurrence(keep, probs[..., None] * values)[0]


def dechunk_reference(
    values: Tensor, probs: Tensor, index: Tensor, confidence: Tensor, residual: Tensor, *,
    starts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`dechunk` with all taps, as it is written, by autograd."""
    values, probs = values.to(wide_dtype(values)), probs.to(wide_dtype(values))
    smoothed, last = [], torch.zeros_like(values[:, 0])
    for k, (value, prob) in enumerate(zip(values.unbind(1), probs.unbind(1), strict=True)):
        if starts is not None:
            last = last.masked_fill(starts[:, k, None], 0.0)
        last = prob[:, None] * value + (1 - prob[:, None]) * last
        smoothed.append(last)
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    spread = torch.stack(smoothed, dim=1)[rows, index]  # (B, L, D)
    straight_through = confidence + (1 - confidence).detach()
    return straight_through[..., None] * spread + residual


class _Spread(torch.autograd.Function):
    """ste(c_t) zb_{index_t} + residual_t."""

    @staticmethod
    def forward(ctx, smoothed, index, confidence, residual):
        ctx.dtypes = confidence.dtype, residual.dtype
        ctx.save_for_backward(smoothed, index)
        if _on_gpu(smoothed):
            return _spread_triton(smoothed.contiguous(), index, residual.contiguous())
        y = smoothed.flatten(0, 1).index_select(0, _flat(index, smoothed.shape[1]))
        return y.view(*index.shape, -1).add_(residual)

    @staticmethod
    def backward(ctx, grad):
        smoothed, index = ctx.saved_tensors
        confidence_dtype, residual_dtype = ctx.dtypes
        grad = grad.contiguous()
        if _on_gpu(smoothed):
            sums, confidence = _chunk_sums_triton(grad, smoothed.contiguous(), index)
        else:
            flat = _flat(index, smoothed.shape[1])
            spread = smoothed.flatten(0, 1).index_select(0, flat).view_as(grad)
            confidence = torch.linalg.vecdot(grad, spread)
            sums = torch.zeros_like(smoothed, memory_format=torch.contiguous_format)
            sums.flatten(0, 1).index_add_(0, flat, grad.flatten(0, 1))
        return sums, None, confidence.to(confidence_dtype), grad.to(residual_dtype)


def _flat(index: Tensor, num_chunks: int) -> Tensor:
    """(B, L) chunk numbers as rows of (B * M, D)."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    return (rows * num_chunks + index).flatten()


def _on_gpu(values: Tensor) -> bool:
    return values.is_cuda and triton is not None and values.dtype != torch.float64


# -- Triton -------------------------------------------------------------------------------------
#
# Spreading and the sums of g per chunk are memory bound: the one reads L D + M D numbers and writes
# L D, the other reverses that.

BLOCK_D = 128
BLOCK_L = 32


@jit
def _spread_kernel(
    smoothed, index, residual, out, M, L, D, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    positions = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    channels = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    chunk = tl.load(index + row * L + positions, mask=positions < L, other=0)
    inside = (positions < L)[:, None] & (channels < D)[None, :]
    at = (row * L + positions)[:, None] * D + channels[None, :]
    source = (row * M + chunk)[:, None] * D + channels[None, :]
    value = tl.load(smoothed + source, mask=inside, other=0.0)
    value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value, mask=inside)


@jit
def _chunk_sums_kernel(
    grad, smoothed, ends, sums, confidence, M, L, D, BLOCK_D: tl.constexpr
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    channels = tl.arange(0, BLOCK_D)  # all of them: the confidence needs the whole product
    inside = channels < D
    begin = tl.load(ends + row * M + chunk - 1, mask=chunk > 0, other=0)
    end = tl.load(ends + row * M + chunk)
    at = (row * M + chunk) * D + channels
    value = tl.load(smoothed + at, mask=inside, other=0.0)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for t in range(begin, end):
        g = tl.load(grad + (row * L + t) * D + channels, mask=inside, other=0.0)
        total += g
        tl.store(confidence + row * L + t, tl.sum(g * value))
    tl.store(sums + at, total, mask=inside)


def _spread_triton(smoothed: Tensor, index: Tensor, residual: Tensor) -> Tensor:
    batch, num_chunks, dim = smoothed.shape
    length = index.shape[1]
    out = torch.empty(batch, length, dim, device=smoothed.device, dtype=torch.float32)
    grid = (batch, -(-length // BLOCK_L), -(-dim // BLOCK_D))
    _spread_kernel[grid](
        smoothed, index.contiguous(), residual, out, num_chunks, length, dim, BLOCK_L, BLOCK_D
    )
    return out


def _chunk_sums_triton(grad: Tensor, smoothed: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    batch, num_chunks, dim = smoothed.shape
    length = index.shape[1]
    counts = torch.zeros(batch, num_chunks, device=index.device, dtype=torch.int64)
    ends = counts.scatter_add_(1, index, torch.ones_like(index)).cumsum(1)
    sums = torch.empty_like(smoothed)
    confidence = torch.empty(batch, length, device=index.device, dtype=torch.float32)
    _chunk_sums_kernel[(num_chunks, batch)](
        grad, smoothed, ends, sums, confidence, num_chunks, length, dim,
        triton.next_power_of_2(dim),
    )  # fmt: skip
    return sums, confidence
