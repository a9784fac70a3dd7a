"""Dechunking: smooth the chunk vectors, give each position the vector of its chunk, add a residual.

    zb_k = P_k z_k + (1 - P_k) zb_{k-1}                 (zb_{-1} = 0; no past where starts_k)
    y_t  = ste(c_t) zb_{index_t} + residual_t           (ste: 1 forward, identity backward)

With g = dL/dy, G_k = sum of g over chunk k and s_k = G_k + (1 - P_{k+1}) s_{k+1}, the gradients are
dL/dz_k = P_k s_k, dL/dP_k = <s_k, z_k - zb_{k-1}>, dL/dc_t = <g_t, zb_{index_t}>.

Shapes: B batch, M chunks (right-padded), L positions, D channels.
Reference: arXiv 2507.07955, section 2.2.2 (smoothing module, confidence, straight-through).
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton wheel for this platform
    triton = None

# A selected P exceeds 0.5, so each chunk at least halves the past: 2^-32 is below float32.
TAPS = 32


def dechunk(
    values: Tensor,
    probs: Tensor,
    index: Tensor,
    confidence: Tensor,
    residual: Tensor,
    *,
    starts: Tensor | None = None,
    taps: int | None = TAPS,
) -> Tensor:
    """The two equations above, differentiable in values, probs, confidence and residual.

    Args:
        values: z (B, M, D), any floating type.
        probs: P (B, M) in [0, 1].
        index: (B, L) int64, the chunk of each position, never falling along L.
        confidence: c (B, L); its value has no effect on the result, only on gradients.
        residual: (B, L, D).
        starts: (B, M) bool, chunks that forget everything before them.
        taps: how many chunks back the smoothing reaches; the default is exact to float32 when
            every P that matters exceeds 0.5. None is all of them; 1 is enough when every P is 1.

    Returns: y (B, L, D) in float32 (float64 if values is).
    """
    if torch.compiler.is_compiling():  # by hand already, and its shapes change at every step
        return torch.compiler.disable(dechunk)(
            values, probs, index, confidence, residual, starts=starts, taps=taps
        )
    keep = 1 - probs
    if starts is not None:
        keep = keep.masked_fill(starts, 0.0)
    return _Dechunk.apply(values, probs, keep, index, confidence, residual, taps)


@torch.no_grad()
def smooth(
    values: Tensor, probs: Tensor, *, starts: Tensor | None = None, taps: int | None = TAPS
) -> Tensor:
    """zb (B, M, D) in float32; arguments as in `dechunk`. For decoding, without gradient."""
    keep = 1 - probs if starts is None else (1 - probs).masked_fill(starts, 0.0)
    if _on_gpu(values):
        return _smooth_triton(values.contiguous(), probs.float(), keep.float(), taps)
    dtype = _dtype(values)
    return _smooth(values.to(dtype), probs.to(dtype), keep.to(dtype), taps)


def dechunk_reference(
    values: Tensor,
    probs: Tensor,
    index: Tensor,
    confidence: Tensor,
    residual: Tensor,
    *,
    starts: Tensor | None = None,
) -> Tensor:
    """`dechunk` with all taps, as it is written, by autograd."""
    values, probs = values.to(_dtype(values)), probs.to(_dtype(values))
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


class _Dechunk(torch.autograd.Function):
    """`keep` is 1 - probs, zero at starts; its gradient is that of the past's factor."""

    @staticmethod
    def forward(ctx, values, probs, keep, index, confidence, residual, taps):
        dtype = _dtype(values)
        values, probs, keep = values.contiguous(), probs.to(dtype), keep.to(dtype)
        ctx.dtypes = values.dtype, confidence.dtype, residual.dtype
        ctx.taps = taps
        if _on_gpu(values):
            smoothed = _smooth_triton(values, probs, keep, taps)
            y = _spread_triton(smoothed, index, residual.contiguous())
        else:
            smoothed = _smooth(values.to(dtype), probs, keep, taps)
            y = smoothed.flatten(0, 1).index_select(0, _flat(index, values.shape[1]))
            y = y.view(*index.shape, -1).add_(residual)
        ctx.save_for_backward(values, probs, keep, index, smoothed)
        return y

    @staticmethod
    def backward(ctx, grad):
        values, probs, keep, index, smoothed = ctx.saved_tensors
        value_dtype, confidence_dtype, residual_dtype = ctx.dtypes
        grad = grad.contiguous()
        if _on_gpu(values):
            sums, confidence = _chunk_sums_triton(grad, smoothed, index)
            d_values, d_probs, d_keep = _unsmooth_triton(
                sums, values, probs, keep, smoothed, ctx.taps
            )
        else:
            flat = _flat(index, values.shape[1])
            spread = smoothed.flatten(0, 1).index_select(0, flat).view_as(grad)
            confidence = (grad * spread).sum(-1)
            sums = torch.zeros_like(smoothed)
            sums.flatten(0, 1).index_add_(0, flat, grad.flatten(0, 1))
            sums = _unsmooth(sums, keep, ctx.taps)
            d_values = probs[..., None] * sums
            d_probs = (sums * values).sum(-1)
            d_keep = torch.zeros_like(keep)
            d_keep[:, 1:] = (sums[:, 1:] * smoothed[:, :-1]).sum(-1)
        return (
            d_values.to(value_dtype),
            d_probs,
            d_keep,
            None,
            confidence.to(confidence_dtype),
            grad.to(residual_dtype),
            None,
        )


def _smooth(values: Tensor, probs: Tensor, keep: Tensor, taps: int | None) -> Tensor:
    """zb (B, M, D) by doubling: after n passes each chunk holds its last 2^n terms."""
    out, decay = probs[..., None] * values, keep.clone()
    for shift in _shifts(values.shape[1], taps):
        out[:, shift:] += decay[:, shift:, None] * out[:, :-shift]
        decay[:, shift:] = decay[:, shift:] * decay[:, :-shift]
    return out


def _unsmooth(sums: Tensor, keep: Tensor, taps: int | None) -> Tensor:
    """s_k = G_k + keep_{k+1} s_{k+1}, in place of G (B, M, D), by doubling."""
    decay = torch.zeros_like(keep)
    decay[:, :-1] = keep[:, 1:]
    for shift in _shifts(sums.shape[1], taps):
        sums[:, :-shift] += decay[:, :-shift, None] * sums[:, shift:]
        decay[:, :-shift] = decay[:, :-shift] * decay[:, shift:]
    return sums


def _shifts(num_chunks: int, taps: int | None) -> list[int]:
    reach = num_chunks if taps is None else min(taps, num_chunks)
    return [2**n for n in range(max(reach - 1, 0).bit_length())]


def _flat(index: Tensor, num_chunks: int) -> Tensor:
    """(B, L) chunk numbers as rows of (B * M, D)."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    return (rows * num_chunks + index).flatten()


def _dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _on_gpu(values: Tensor) -> bool:
    return values.is_cuda and triton is not None and values.dtype != torch.float64


# -- Triton -------------------------------------------------------------------------------------
#
# Smoothing: one program takes a block of chunks of one row and BLOCK_D channels, starts `taps`
# chunks early with an empty past and walks; the next row of z does not depend on the walk, so the
# loads run ahead. Traffic: (1 + taps / BLOCK_M) M D read, M D written. Spreading and the sums of g
# per chunk are memory bound: L D + M D read, L D written; and the reverse. A fused walk over
# positions would save the M D write and read, a fifth of the traffic, at L instead of M steps.

BLOCK_M = 128
BLOCK_D = 128
BLOCK_L = 32

if triton is not None:

    @triton.jit
    def _smooth_kernel(
        values, probs, keep, out, M, D, block_m, taps, BLOCK_D: tl.constexpr
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        first = tl.program_id(1) * block_m
        channels = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = channels < D
        state = tl.zeros((BLOCK_D,), dtype=tl.float32)
        for k in range(tl.maximum(first - taps, 0), tl.minimum(first + block_m, M)):
            at = row * M + k
            value = tl.load(values + at * D + channels, mask=inside, other=0.0).to(tl.float32)
            state = tl.load(probs + at) * value + tl.load(keep + at) * state
            tl.store(out + at * D + channels, state, mask=channels < tl.where(k >= first, D, 0))

    @triton.jit
    def _unsmooth_kernel(
        sums, values, probs, keep, smoothed, d_values, d_probs, d_keep, B, M, D, block_m, taps,
        BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        first = tl.program_id(1) * block_m
        channels = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = channels < D
        end = tl.minimum(first + block_m, M)
        state = tl.zeros((BLOCK_D,), dtype=tl.float32)
        partial = (tl.program_id(2).to(tl.int64) * B + row) * M  # one slot per channel block
        decay = 0.0
        for i in range(0, tl.minimum(end + taps, M) - first):
            k = tl.minimum(end + taps, M) - 1 - i
            at = row * M + k
            state = tl.load(sums + at * D + channels, mask=inside, other=0.0) + decay * state
            prob, decay = tl.load(probs + at), tl.load(keep + at)
            mine = channels < tl.where(k < end, D, 0)
            before = channels < tl.where((k < end) & (k > 0), D, 0)
            value = tl.load(values + at * D + channels, mask=mine, other=0.0).to(tl.float32)
            past = tl.load(smoothed + (at - 1) * D + channels, mask=before, other=0.0)
            tl.store(d_values + at * D + channels, prob * state, mask=mine)
            tl.store(d_probs + partial + k, tl.sum(state * value), mask=k < end)
            tl.store(d_keep + partial + k, tl.sum(state * past), mask=k < end)

    @triton.jit
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

    @triton.jit
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


def _smooth_triton(values: Tensor, probs: Tensor, keep: Tensor, taps: int | None) -> Tensor:
    _, num_chunks, dim = values.shape
    out = torch.empty(values.shape, device=values.device, dtype=torch.float32)
    block_m, taps, grid = _walk(values, taps)
    _smooth_kernel[grid](
        values, probs.contiguous(), keep.contiguous(), out, num_chunks, dim, block_m, taps, BLOCK_D
    )
    return out


def _unsmooth_triton(
    sums: Tensor, values: Tensor, probs: Tensor, keep: Tensor, smoothed: Tensor, taps: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_chunks, dim = values.shape
    block_m, taps, grid = _walk(values, taps)
    d_values = torch.empty_like(sums)
    partial = torch.empty(2, grid[2], batch, num_chunks, device=sums.device, dtype=torch.float32)
    _unsmooth_kernel[grid](
        sums, values, probs.contiguous(), keep.contiguous(), smoothed, d_values, partial[0],
        partial[1], batch, num_chunks, dim, block_m, taps, BLOCK_D,
    )  # fmt: skip
    d_probs, d_keep = partial.sum(1)
    return d_values, d_probs, d_keep


def _walk(values: Tensor, taps: int | None) -> tuple[int, int, tuple[int, int, int]]:
    """Chunks per program, chunks of warm-up and the grid: one program per row when all count."""
    batch, num_chunks, dim = values.shape
    block_m = max(num_chunks, 1) if taps is None else BLOCK_M
    warm_up = 0 if taps is None else taps
    return block_m, warm_up, (batch, -(-num_chunks // block_m), -(-dim // BLOCK_D))


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
