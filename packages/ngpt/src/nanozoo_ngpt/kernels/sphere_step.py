"""One move on the unit sphere: from x a fraction a of the way to the direction of y, and back up.

    r = x + a (y / |y| - x),   o = r / |r|

With g = dL/do, u = y / |y| and gr = (g - o <o, g>) / |r|, the gradients are dL/dx = (1 - a) gr,
dL/da = sum over rows of gr (u - x), dL/dy = (a gr - u <u, a gr>) / |y|.

Shapes: N rows, D model_dim.
Reference: arXiv 2410.01131, equations 10 and 11.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton wheel for this platform
    triton = None

Backend = Literal["torch", "triton"]

EPS = 1e-12  # least length that is divided by


def unit(z: Tensor, dim: int = -1) -> Tensor:
    """z / |z| along `dim`, computed in float32 or better, in the dtype of z."""
    wide = z.to(_dtype(z))
    norm = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    return (wide / norm.clamp_min(EPS)).to(z.dtype)


def sphere_step(x: Tensor, y: Tensor, a: Tensor, *, backend: Backend | None = None) -> Tensor:
    """The step above, differentiable once in x, y and a.

    Args:
        x: (..., D), the stream.
        y: (..., D), a sublayer's output, of any length but 0.
        a: (D,) in float32, not negative.
        backend: None takes Triton on CUDA where it is installed, torch elsewhere.

    Returns: o (..., D) in the dtype of x; lengths and sums are float32 (float64 for float64).
    """
    if torch.compiler.is_compiling():
        return sphere_step_reference(x, y, a)  # the compiler fuses it as the kernel does
    if backend is None:
        backend = "triton" if x.is_cuda and triton is not None and x.element_size() < 8 else "torch"
    function = _TritonStep if backend == "triton" else _TorchStep
    return function.apply(x, y, a)


def sphere_step_reference(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """The same as it is written, by autograd: about 8 passes over (N, D)."""
    dtype = _dtype(x)
    stream = x.to(dtype)
    return unit(stream + a.to(dtype) * (unit(y.to(dtype)) - stream)).to(x.dtype)


class _TorchStep(torch.autograd.Function):
    """By hand, in fewer passes over memory than autograd takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        dtype = _dtype(x)
        stream, step = x.to(dtype), a.to(dtype)
        proposal = y.to(dtype)
        y_scale = _inverse_length(proposal)
        target = proposal * y_scale
        o = torch.lerp(stream, target, step)
        r_scale = _inverse_length(o)
        o.mul_(r_scale)
        ctx.dtypes = x.dtype, y.dtype, a.dtype
        ctx.save_for_backward(stream, target, step, o, y_scale, r_scale)
        return o.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stream, target, step, o, y_scale, r_scale = ctx.saved_tensors
        grad = grad.to(o.dtype)
        along = torch.linalg.vecdot(o, grad)[..., None]
        gr = torch.addcmul(grad, o, along, value=-1).mul_(r_scale)
        ga = (target - stream).mul_(gr).flatten(0, -2).sum(0)
        ahead = gr * step
        along = torch.linalg.vecdot(target, ahead)[..., None]
        gx = gr.sub_(ahead)
        gy = ahead.addcmul_(target, along, value=-1).mul_(y_scale)
        x_dtype, y_dtype, a_dtype = ctx.dtypes
        return gx.to(x_dtype), gy.to(y_dtype), ga.to(a_dtype)


def _inverse_length(z: Tensor) -> Tensor:
    """(..., 1)"""
    return torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min_(EPS).reciprocal_()


def _dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# -- Triton -------------------------------------------------------------------------------------
#
# A program holds whole rows, as lengths need them, in tiles of about 4096 numbers: 32 per thread of
# 4 warps, few enough for registers. Forward reads x and y and writes o; backward reads x, y, o, g
# and writes gx, gy. The sum over rows for a is taken in two stages: NUM_PARTIAL programs each walk
# their share of the rows, then torch adds what they found.

TILE = 4096
NUM_PARTIAL = 512  # about four programs for each multiprocessor of a large GPU

if triton is not None:

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        x, y, a, o, y_scale, r_scale, N, D, eps, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
    ):  # fmt: skip
        rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        channels = tl.arange(0, BLOCK_D)
        inside = (rows < N)[:, None] & (channels < D)[None, :]
        at = rows[:, None] * D + channels[None, :]
        stream = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        target = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        step = tl.load(a + channels, mask=channels < D, other=0.0).to(tl.float32)
        to_unit = 1 / tl.maximum(tl.sqrt(tl.sum(target * target, 1)), eps)
        r = stream + step[None, :] * (target * to_unit[:, None] - stream)
        back_up = 1 / tl.maximum(tl.sqrt(tl.sum(r * r, 1)), eps)
        tl.store(o + at, (r * back_up[:, None]).to(o.dtype.element_ty), mask=inside)
        tl.store(y_scale + rows, to_unit, mask=rows < N)
        tl.store(r_scale + rows, back_up, mask=rows < N)

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        grad, x, y, a, o, y_scale, r_scale, gx, gy, partial, N, D, tiles_each,
        BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0).to(tl.int64)
        channels = tl.arange(0, BLOCK_D)
        step = tl.load(a + channels, mask=channels < D, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK_D,), dtype=tl.float32)
        for tile in range(0, tiles_each):
            rows = (program * tiles_each + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
            inside = (rows < N)[:, None] & (channels < D)[None, :]
            at = rows[:, None] * D + channels[None, :]
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            out = tl.load(o + at, mask=inside, other=0.0).to(tl.float32)
            stream = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            target = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            to_unit = tl.load(y_scale + rows, mask=rows < N, other=0.0)
            back_up = tl.load(r_scale + rows, mask=rows < N, other=0.0)
            target *= to_unit[:, None]
            gr = (g - out * tl.sum(out * g, 1)[:, None]) * back_up[:, None]
            ahead = gr * step[None, :]
            total += tl.sum(gr * (target - stream), 0)
            behind = (ahead - target * tl.sum(target * ahead, 1)[:, None]) * to_unit[:, None]
            tl.store(gx + at, (gr - ahead).to(gx.dtype.element_ty), mask=inside)
            tl.store(gy + at, behind.to(gy.dtype.element_ty), mask=inside)
        tl.store(partial + program * D + channels, total, mask=channels < D)


class _TritonStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        x, y, a = x.contiguous(), y.contiguous(), a.contiguous()
        num_rows, dim = x.shape[:-1].numel(), x.shape[-1]
        o = torch.empty_like(x)
        y_scale, r_scale = torch.empty(2, num_rows, device=x.device, dtype=torch.float32)
        if num_rows:
            block_n, block_d = _tile(dim)
            _forward_kernel[(-(-num_rows // block_n),)](
                x, y, a, o, y_scale, r_scale, num_rows, dim, EPS, BLOCK_N=block_n, BLOCK_D=block_d
            )
        ctx.save_for_backward(x, y, a, o, y_scale, r_scale)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, a, o, y_scale, r_scale = ctx.saved_tensors
        num_rows, dim = x.shape[:-1].numel(), x.shape[-1]
        gx, gy = torch.empty_like(x), torch.empty_like(y)
        block_n, block_d = _tile(dim)
        num_tiles = -(-num_rows // block_n)
        tiles_each = max(1, -(-num_tiles // NUM_PARTIAL))
        num_programs = -(-num_tiles // tiles_each)
        partial = torch.empty(num_programs, dim, device=x.device, dtype=torch.float32)
        if num_programs:
            _backward_kernel[(num_programs,)](
                grad.contiguous(), x, y, a, o, y_scale, r_scale, gx, gy, partial, num_rows, dim,
                tiles_each, BLOCK_N=block_n, BLOCK_D=block_d,
            )  # fmt: skip
        return gx, gy, partial.sum(0).to(a.dtype)


def _tile(dim: int) -> tuple[int, int]:
    """Rows and channels of a tile, powers of two."""
    block_d = triton.next_power_of_2(dim)
    return max(1, TILE // block_d), block_d
