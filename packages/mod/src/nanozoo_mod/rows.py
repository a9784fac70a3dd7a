"""Rows out of a stream, and their increments back into it.

N rows of the stream, D model_dim, M chosen rows, all different.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def take_rows(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The stream x (N, D), and its rows `index` (M,) as (M, D).

    Go on with the stream that comes back: its gradient and the rows' then meet in one addition,
    where autograd would spread the rows over zeros first.
    """
    if torch.compiler.is_compiling():
        return x, x.index_select(0, index)
    return _TakeRows.apply(x, index)


def add_rows(x: Tensor, index: Tensor, gate: Tensor, increment: Tensor) -> Tensor:
    """x (N, D) with gate (M,) * increment (M, D) added to rows `index` (M,), the others as they
    are to the bit."""
    return x.index_add(0, index, (gate[:, None] * increment).to(x.dtype))


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        return x.view_as(x), x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_rows: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.index_add(0, index, grad_rows.to(grad.dtype)), None
