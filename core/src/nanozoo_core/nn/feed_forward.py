"""The feed-forward layers that several models share.

B batch, T sequence, D model_dim, F mlp_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), without biases (arXiv 2002.05202, eq. 5)."""

    def __init__(self, model_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(model_dim, 2 * mlp_dim, bias=False)
        self.gate_up.weight.muon_split = (mlp_dim, mlp_dim)  # type: ignore[attr-defined]
        self.down = nn.Linear(mlp_dim, model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, F) each
        return self.down(self.activate(gate) * up)

    def activate(self, gate: Tensor) -> Tensor:
        return F.silu(gate)


class GeGLU(SwiGLU):
    """W_down (gelu(W_gate x) * W_up x), without biases (arXiv 2002.05202, eq. 6)."""

    def activate(self, gate: Tensor) -> Tensor:
        return F.gelu(gate)


class ReluSquared(nn.Module):
    """W_down relu(W_up x)^2, without biases (arXiv 2109.08668, section 3)."""

    def __init__(self, model_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(model_dim, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(relu_squared(self.up(x)))


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ReluSquared.apply(x)
    return F.relu(x).square()


class _ReluSquared(torch.autograd.Function):
    """The same by hand: half of autograd's passes over memory, which is the cost on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(grad, positive).mul_(2)
