"""What ops share: the choice of kernels; and for the scans precision, resets, padding and checks.

Nothing here is an op: each op's own module says where its reference, its fast torch form and its
Triton twin are.

Shapes: B batch, L sequence.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.device import is_interpreting

HAS_TRITON = importlib.util.find_spec("triton") is not None  # it has no wheels for macOS, Windows

Backend = Literal["auto", "torch", "triton"]


def use_triton(backend: Backend, x: Tensor) -> bool:
    """Whether the kernels take x: under auto when it is on a GPU and not float64.

    Raises: ValueError when triton is asked for where it cannot run.
    """
    able = HAS_TRITON and x.dtype != torch.float64
    if backend != "triton":
        return backend == "auto" and able and x.is_cuda
    if not able:
        raise ValueError("backend=triton needs the triton package and inputs of at most 32 bits")
    if not x.is_cuda and not is_interpreting():
        raise ValueError(
            "backend=triton needs CUDA tensors (or TRITON_INTERPRET=1, to test the kernels); use "
            "auto"
        )
    return True


def segment_starts(segments: Tensor) -> Tensor:
    """(B, L) bool: where the segment number differs from the one before (never at position 0)."""
    return F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))


def segment_runs(x: Tensor, segments: Tensor | None) -> Tensor:
    """(B, L) int32: the number of each position's segment in its row, from 0; for x (B, L, ..)."""
    if segments is None:
        return torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device)
    return segment_starts(segments).cumsum(1, dtype=torch.int32)


def unit_stride(x: Tensor) -> Tensor:
    """x, or a copy where its last stride is not 1: kernels read rows of neighbours."""
    return x if x.stride(-1) == 1 else x.contiguous()


def valid_positions(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool: the positions before each right-padded row's end."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def check_shapes(**expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises: ValueError naming the first tensor whose shape is not the one beside it."""
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want {shape}")
