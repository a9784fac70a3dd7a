"""Triton where it is installed; elsewhere `triton` is None, and nobody may call a kernel."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on macOS and Windows
    triton = tl = None

jit: Any = (lambda kernel: kernel) if triton is None else triton.jit
