"""Where numbers become float64, which Apple's GPUs do not have."""

from __future__ import annotations

import torch
from torch import Tensor


def finest_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def in_float64(x: Tensor) -> Tensor:
    """As float64: where it is, or on the CPU if its device has none."""
    return (x if finest_dtype(x.device) == torch.float64 else x.cpu()).double()
