"""Chunk vectors from the bytes before a chunk, and parts of a chunk's vector for each of its bytes.

The window of pooling ends at the chunk's first position: it reads the chunk that has just closed,
and nothing of the one being opened, whose later positions would see their own future in it.

Shapes: B batch, L positions of a stage, M its chunks, D model_dim, R window of pooling, N positions
per chunk, S some rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChunkPool(nn.Module):
    """c_k = h_t + U_2 gelu(U_1 vec(h_{t-R+1} + e_1, ..., h_t + e_R)), t the first position of chunk
    k; what lies before the start counts as 0. U_2 starts at 0: at first c_k = h_t."""

    def __init__(self, model_dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.positions = nn.Parameter(torch.zeros(window, model_dim))  # e
        self.up = nn.Linear(window * model_dim, model_dim, bias=False)  # U_1
        self.down = nn.Linear(model_dim, model_dim, bias=False)  # U_2

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        self.positions.zero_()
        self.up.weight.normal_(std=std)
        self.down.weight.zero_()

    def forward(self, h: Tensor, order: Tensor, documents: Tensor | None) -> Tensor:
        """h (B, L, D), first positions of the chunks `order` (B, M) -> (B, M, D); nothing passes
        between `documents` (B, L)."""
        batch, length, dim = h.shape
        steps = torch.arange(1 - self.window, 1, device=h.device)
        places = order[..., None] + steps  # (B, M, R)
        exists = places >= 0
        places = places.clamp(min=0)
        if documents is not None:
            flat = documents.gather(1, places.flatten(1)).view_as(places)
            exists = exists & (flat == flat[..., -1:])
        rows = torch.arange(batch, device=h.device)[:, None, None] * length
        windows = h.flatten(0, 1).index_select(0, (rows + places).flatten())
        windows = windows.view(*places.shape, dim).masked_fill(~exists[..., None], 0.0)
        return self.of_windows(windows)

    def of_windows(self, windows: Tensor) -> Tensor:
        """(..., R, D) -> (..., D)."""
        hidden = F.gelu(self.up((windows + self.positions).flatten(-2)), approximate="tanh")
        return windows[..., -1, :] + self.down(hidden)


class Unpool(nn.Module):
    """V_2 gelu(V_1 z_k), whose j-th part is for the j-th position of chunk k. V_2 starts at 0."""

    def __init__(self, model_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.up = nn.Linear(model_dim, model_dim, bias=False)  # V_1
        self.down = nn.Linear(model_dim, stride * model_dim, bias=False)  # V_2

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        self.up.weight.normal_(std=std)
        self.down.weight.zero_()

    def parts(self, chunks: Tensor) -> Tensor:
        """(..., D) -> (..., N, D)."""
        hidden = F.gelu(self.up(chunks), approximate="tanh")
        return self.down(hidden).unflatten(-1, (self.stride, -1))

    def forward(self, chunks: Tensor, index: Tensor, order: Tensor) -> Tensor:
        """chunks (B, M, D), the chunk of each position `index` (B, L), first positions `order`
        (B, M) -> (B, L, D)."""
        num_chunks, length = chunks.shape[1], index.shape[1]
        places = torch.arange(length, device=index.device) - order.gather(1, index)
        places = places.clamp(max=self.stride - 1)  # of padding, which nothing reads
        rows = torch.arange(chunks.shape[0], device=index.device)[:, None] * num_chunks
        flat = ((rows + index) * self.stride + places).flatten()
        return self.parts(chunks).flatten(0, 2).index_select(0, flat).unflatten(0, index.shape)
