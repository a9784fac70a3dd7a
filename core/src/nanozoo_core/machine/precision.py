"""Where numbers become float32, and where float64, which Apple's GPUs do not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_kept: dict[int, tuple[Tensor, Tensor]] | None = None  # by weight: it, and its copy


def finest_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def in_float64(x: Tensor) -> Tensor:
    """As float64: where it is, or on the CPU if its device has none."""
    return (x if finest_dtype(x.device) == torch.float64 else x.cpu()).double()


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, for sums and states of x whatever it is; float64 if it is that."""
    return torch.promote_types(x.dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """x in that dtype."""
    return x.to(wide_dtype(x))


def product_dtype(x: Tensor) -> torch.dtype:
    """Of a matrix product with x: autocast's where it is on, as for F.linear."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """To what a number of rows that changes from batch to batch is best rounded up.

    In half precision a CPU's matrix library compiles a product for each new shape, which takes
    milliseconds, longer than the product itself.
    """
    return 64 if device.type == "cpu" and dtype.itemsize == 2 else 1


@contextmanager
def casts_kept() -> Iterator[None]:
    """Inside of it no weight may change, and `cast_once` casts each at most once. Autocast does so
    for its own operations alone."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def cast_once(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` as `dtype`, without a gradient to it; the same copy as before where that is kept."""
    if weight.dtype == dtype or _kept is None or not weight.is_leaf:
        return weight.detach().to(dtype)
    kept = _kept.get(id(weight))
    if kept is None or kept[1].dtype != dtype:
        kept = _kept[id(weight)] = weight, weight.detach().to(dtype)
    return kept[1]


class _CastOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        return cast_once(weight, dtype).view_as(weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream.to(ctx.dtype), None


def cast_for_product(weight: Tensor, x: Tensor) -> Tensor:
    """`weight` in the precision of a product with x, cast once where casts are kept, with its
    gradient: what autocast does for operations of its own, for a weight of which they read a part,
    or which is no argument of theirs."""
    dtype = product_dtype(x)
    if weight.dtype == dtype:
        return weight
    if _kept is None or not weight.is_leaf or torch.compiler.is_compiling():
        return weight.to(dtype)
    return _CastOnce.apply(weight, dtype)  # type: ignore[no-untyped-call]
