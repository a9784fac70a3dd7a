"""A linear layer whose channels meet only inside blocks, as the gates of recurrent layers have it.

N blocks of C channels, D = N C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BlockDiagonalLinear(nn.Module):
    """diag(W_1, ..., W_N) x + b: (..., D) -> (..., D), with D^2 / N weights (arXiv 2402.19427,
    section 2.4). The weights start as those of a Linear of width C: U(+-1 / sqrt(C)), biases 0.

    Raises: ValueError where the blocks do not divide the width.
    """

    def __init__(self, dim: int, num_blocks: int) -> None:
        super().__init__()
        size, rest = divmod(dim, num_blocks)
        if rest:
            raise ValueError(f"num_blocks={num_blocks} does not divide the {dim} channels")
        self.weight = nn.Parameter(torch.empty(num_blocks, size, size))  # (N, out, in)
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.uniform_(self.weight, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, self.weight.shape[:2])  # (..., N, C)
        return torch.einsum("...ni,noi->...no", blocks, self.weight).flatten(-2) + self.bias
