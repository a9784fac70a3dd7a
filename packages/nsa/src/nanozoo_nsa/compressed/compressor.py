"""phi of the compressed branch: l tokens become one key or one value, every d tokens.

B batch, Hk key and value heads, T sequence, K head_dim, W compressed blocks, M hidden width of the
MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import cast_for_product
from nanozoo_core.nn.control import init_input_matrix
from nanozoo_nsa.config import NSAConfig


class Compressor(nn.Module):
    """phi: the tokens i d .. i d + l - 1 of a head become its block i.

    phi(u) = mean(u) + W_2 gelu(W_1 vec(u + e) + b_1) + b_2, or W vec(u + e), or mean(u); e are
    positions within the block (arXiv 2502.11089, eq. 7). Its matrices are parameters of their own,
    not nn.Linear: a model that draws all its Linear weights anew leaves them alone.
    """

    def __init__(self, config: NSAConfig) -> None:
        super().__init__()
        self.window, self.stride = config.grid.window, config.grid.stride
        self.mode, self.adds_mean = config.compress_mode, config.compress_residual_mean
        width, size = config.head_dim, self.window * config.head_dim
        if self.mode == "mean":
            return
        self.positions = nn.Parameter(torch.empty(self.window, width))
        hidden = max(1, int(config.compress_mlp_ratio * width)) if self.mode == "mlp" else width
        self.up = nn.Parameter(torch.empty(hidden, size))
        if self.mode == "mlp":
            self.up_bias = nn.Parameter(torch.empty(hidden))
            self.down = nn.Parameter(torch.empty(width, hidden))
            self.down_bias = nn.Parameter(torch.empty(width))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        positions, biases   0
        up                  U(+-sqrt(3) * 0.5 / sqrt(fan_in))
        down                0 beside the mean, else as up: without either all keys would be equal
        """
        if self.mode == "mean":
            return
        nn.init.zeros_(self.positions)
        init_input_matrix(self.up)
        if self.mode == "mlp":
            nn.init.zeros_(self.up_bias)
            nn.init.zeros_(self.down_bias)
            if self.adds_mean:
                nn.init.zeros_(self.down)
            else:
                init_input_matrix(self.down)

    def forward(self, u: Tensor) -> Tensor:
        """(B, Hk, T, K) -> (B, Hk, W, K): complete blocks alone."""
        length, width = u.shape[2:]
        num = max(0, (length - self.window) // self.stride + 1)
        parts = self.window // self.stride
        if num == 0:
            return u[:, :, :0]
        steps = u[:, :, : (num + parts - 1) * self.stride].unflatten(2, (-1, self.stride))
        mean = None
        if self.mode == "mean" or (self.mode == "mlp" and self.adds_mean):
            step_means = steps.mean(3)  # (B, Hk, W + parts - 1, K)
            mean = sum(step_means[:, :, s : s + num] for s in range(parts)) / parts
        if self.mode == "mean":
            assert isinstance(mean, Tensor)
            return mean
        # Blocks overlap: each step of d tokens is multiplied once by all parts of W_1, and the
        # products of a block's steps are added, which copies no token twice.
        weight = self.up.unflatten(1, (parts, self.stride * width))  # (M, parts, d K)
        products = F.linear(steps.flatten(3), weight.transpose(0, 1).flatten(0, 1))
        products = products.unflatten(-1, (parts, -1))  # (B, Hk, W + parts - 1, parts, M)
        positions = cast_for_product(self.positions, u)
        hidden = F.linear(positions.flatten(), self.up)  # (M,)
        if self.mode == "mlp":
            hidden = hidden + self.up_bias
        for s in range(parts):
            hidden = hidden + products[:, :, s : s + num, s]
        if self.mode == "linear":
            return hidden
        y = F.linear(F.gelu(hidden), self.down, self.down_bias)
        return y if mean is None else y + mean
