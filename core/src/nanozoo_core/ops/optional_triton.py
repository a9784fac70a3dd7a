"""Triton where it is installed; elsewhere `triton` is None, and nobody may call a kernel."""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on macOS and Windows
    triton = tl = None

jit: Any = (lambda kernel: kernel) if triton is None else triton.jit


def product_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies where its operands are float32: those that were float32 from the
    start by three TF32 products, others by one. An AMD GPU has float32 products of its own, and
    Triton no three for it."""
    if torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"
