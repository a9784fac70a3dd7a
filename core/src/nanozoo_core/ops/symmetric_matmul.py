"""Matrix products whose result is symmetric: X X^T and b A + c A A^T.

B batch, M rows, N columns. The Triton kernel computes the tiles on and below the diagonal and
mirrors them, which halves the arithmetic; torch's own product is the reference and the fast path
everywhere else. No backward: these serve Muon's iteration, which is never differentiated.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.ops.optional_triton import jit, tl, triton

# Below this many rows a launch is too short for half the arithmetic to show.
MIN_ROWS = 512


def syrk_reference(x: Tensor) -> Tensor:
    """X X^T of (B, M, N), as (B, M, M)."""
    return torch.bmm(x, x.mT)


def poly2_reference(a: Tensor, b: float, c: float) -> Tensor:
    """b A + c A A^T of symmetric A (B, M, M)."""
    return torch.baddbmm(a, a, a, beta=b, alpha=c)


def syrk(x: Tensor) -> Tensor:
    """X X^T, accumulated in float32.

    Args:
        x: (B, M, N), any strides: `syrk(x.mT)` is X^T X.

    Returns: (B, M, M) in x's dtype; from the kernel exactly symmetric.
    """
    return symmetric_matmul(x) if _kernel_pays(x) else syrk_reference(x)


def poly2(a: Tensor, b: float, c: float) -> Tensor:
    """b A + c A A^T for symmetric A (B, M, M), accumulated in float32."""
    return symmetric_matmul(a, b=b, c=c) if _kernel_pays(a) else poly2_reference(a, b, c)


def _kernel_pays(x: Tensor) -> bool:
    # float32 stays with cuBLAS: without tensor cores the kernel is not faster.
    half = x.dtype in (torch.bfloat16, torch.float16)
    return triton is not None and x.is_cuda and half and x.shape[1] >= MIN_ROWS


@jit
def _symmetric_kernel(
    x_ptr, out_ptr, b, c, num_rows, num_columns, batch_stride, row_stride, column_stride,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, ADD_B: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of c X X^T + b X (the second term if ADD_B), and its mirror image."""
    tile_row, tile_column = tl.program_id(0), tl.program_id(1)
    if tile_column > tile_row:
        return
    rows = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_column * BLOCK_M + tl.arange(0, BLOCK_M)
    batch = tl.program_id(2).to(tl.int64)
    x_ptr += batch * batch_stride
    out_ptr += batch * num_rows * num_rows

    total = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
    for start in range(0, num_columns, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        left = tl.load(
            x_ptr + rows[:, None] * row_stride + inner[None, :] * column_stride,
            mask=(rows[:, None] < num_rows) & (inner[None, :] < num_columns),
            other=0.0,
        )
        right = tl.load(
            x_ptr + columns[None, :] * row_stride + inner[:, None] * column_stride,
            mask=(columns[None, :] < num_rows) & (inner[:, None] < num_columns),
            other=0.0,
        )
        if UPCAST:  # the interpreter cannot multiply bfloat16
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")

    # Only r >= c is written, straight and mirrored, so a diagonal tile is symmetric as well.
    lower = (rows[:, None] >= columns[None, :]) & (rows[:, None] < num_rows)
    if ADD_B:
        tile = tl.load(
            x_ptr + rows[:, None] * row_stride + columns[None, :] * column_stride,
            mask=lower,
            other=0.0,
        )
        total = c * total + b * tile.to(tl.float32)
    result = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows[:, None] * num_rows + columns[None, :], result, mask=lower)
    tl.store(
        out_ptr + columns[:, None] * num_rows + rows[None, :], tl.trans(result), tl.trans(lower)
    )


def symmetric_matmul(
    x: Tensor, *, b: float | None = None, c: float = 1.0, block_m: int = 128, block_k: int = 64
) -> Tensor:
    """The Triton kernel: X X^T of (B, M, N), or b X + c X X^T for symmetric X when b is given.

    Tiles of 128 x 128 x 64 with 8 warps fill a Hopper SM's accumulators. Memory: each tile row
    reads X twice, M * M is written once.
    """
    assert min(block_m, block_k) >= 16, "tl.dot needs tiles of at least 16"
    num_batch, num_rows, num_columns = x.shape
    out = torch.empty((num_batch, num_rows, num_rows), dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(num_rows, block_m)
    _symmetric_kernel[(tiles, tiles, num_batch)](
        x,
        out,
        0.0 if b is None else b,
        c,
        num_rows,
        num_columns,
        *x.stride(),
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        ADD_B=b is not None,
        UPCAST=not x.is_cuda,
        num_warps=8,
        num_stages=3,
    )
    return out
