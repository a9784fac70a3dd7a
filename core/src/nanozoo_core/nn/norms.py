"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, statistics in float32 (arXiv 1910.07467)."""
    by_hand = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if by_hand and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, eps)
    return F.rms_norm(x, x.shape[-1:], eps=eps)


class RMSNorm(nn.RMSNorm):
    """torch's layer with a gain, by hand where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        weight, eps = self.weight.to(x.dtype), self.eps
        by_hand = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        if by_hand and not torch.compiler.is_compiling():
            return rms_norm(x, torch.finfo(x.dtype).eps if eps is None else eps) * weight
        return F.rms_norm(x, x.shape[-1:], weight, eps)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x silu(gate) over the last axis, times a gain; x and gate have one shape."""
    by_hand = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if by_hand and not torch.compiler.is_compiling():
        return _GatedRMSNorm.apply(x, gate.to(x.dtype), eps) * weight
    return rms_norm(x * F.silu(gate), eps) * weight


class _GatedRMSNorm(torch.autograd.Function):
    """Gate and norm at once: half of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, eps: float) -> Tensor:
        y = F.silu(gate).mul_(x)
        norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y.mul_(scale)
        ctx.save_for_backward(x, gate, y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gate, y, scale = ctx.saved_tensors
        mean = torch.linalg.vecdot(grad, y)[..., None] / y.shape[-1]
        grad = torch.addcmul(grad, y, mean, value=-1).mul_(scale)  # of x silu(gate)
        grad_gate = torch.ops.aten.silu_backward(grad * x, gate)
        return F.silu(gate).mul_(grad), grad_gate, None


class _RMSNorm(torch.autograd.Function):
    """The same by hand: on the CPU torch has no fused backward, and autograd's takes 3 times as
    long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # dx = scale * (dy - y mean(y dy))
        y, scale = ctx.saved_tensors
        mean = torch.linalg.vecdot(grad, y)[..., None] / y.shape[-1]
        return torch.addcmul(grad, y, mean, value=-1).mul_(scale), None
