"""Where numbers become float32, and where float64, which Apple's GPUs do not have."""

from __future__ import annotations

import torch
from torch import Tensor


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


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """To what a number of rows that changes from batch to batch is best rounded up.

    In half precision a CPU's matrix library compiles a product for each new shape, which takes
    milliseconds, longer than the product itself.
    """
    return 64 if device.type == "cpu" and dtype.itemsize == 2 else 1
