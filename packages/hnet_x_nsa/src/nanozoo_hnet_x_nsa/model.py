"""H-Net with sparse attention inside: hnet's stages and nsa's mixer, and two ways beyond hnet's of
making chunk vectors and of handing them back.

Shapes: B batch, L positions of a stage, M its chunks, D its model_dim, R positions that pooling
reads, N positions per chunk, S some rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.model import ChunkedStage, HNet
from nanozoo_hnet.routing import Count
from nanozoo_hnet.state import StageState
from nanozoo_hnet_x_nsa.config import LETTER, HNetXNSAConfig
from nanozoo_hnet_x_nsa.mixers import SparseAttention
from nanozoo_hnet_x_nsa.pooling import ChunkPool, Unpool


@dataclass
class PooledState(StageState):
    """hnet's, and what pooling and unpooling remember."""

    recent: Tensor  # (B, R, D): the encoder's last outputs; R = 0 without pooling
    parts: Tensor  # (B, N, D): of each row's current chunk; N = 0 without unpooling

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self.recent.nbytes + self.parts.nbytes


class PooledStage(ChunkedStage):
    """hnet's stage with chunk_pool and unpool."""

    mixers: ClassVar[Mapping[str, Any]] = {**ChunkedStage.mixers, LETTER: SparseAttention}

    def __init__(self, config: HNetConfig, stage: int) -> None:
        super().__init__(config, stage)
        assert isinstance(config, HNetXNSAConfig)
        dim = config.per_stage("model_dim")[stage]
        self.pooling = (
            ChunkPool(dim, config.window_of_pool(stage)) if config.chunk_pool == "mlp" else None
        )
        self.unpooling = (
            Unpool(dim, round(config.ratios[stage])) if config.unpool == "mlp" else None
        )

    def per_chunk(self) -> list[nn.Module]:
        return [module for module in (self.pooling, self.unpooling) if module is not None]

    def init_weights(self, std: float) -> None:
        for module in (self.pooling, self.unpooling):
            if module is not None:
                module.init_weights(std)

    # -- whole sequences ------------------------------------------------------------------------

    def pool(self, h: Tensor, order: Tensor, documents: Tensor | None) -> Tensor:
        if self.pooling is None:
            return super().pool(h, order, documents)
        return self.pooling(h, order, documents)

    def refine(self, y: Tensor, chunks: Tensor, index: Tensor, order: Tensor) -> Tensor:
        if self.unpooling is None:
            return y
        return y + self.unpooling(chunks, index, order)

    # -- one position at a time -----------------------------------------------------------------

    def empty_state(self, batch_size: int, max_length: int) -> PooledState:
        state = super().empty_state(batch_size, max_length)
        weight = self.residual.weight
        window = 0 if self.pooling is None else self.pooling.window
        stride = 0 if self.unpooling is None else self.unpooling.stride
        return PooledState(
            **vars(state),
            recent=weight.new_zeros(batch_size, window, weight.shape[0]),
            parts=weight.new_zeros(batch_size, stride, weight.shape[0]),
        )

    def remember(self, h: Tensor, lengths: Tensor, state: StageState) -> None:
        assert isinstance(state, PooledState)
        if self.pooling is not None:
            steps = torch.arange(-self.pooling.window, 0, device=h.device)
            places = lengths[:, None] + steps  # (B, R)
            rows = torch.arange(h.shape[0], device=h.device)[:, None]
            recent = h[rows, places.clamp(min=0)].masked_fill((places < 0)[..., None], 0.0)
            state.recent = recent.to(state.recent)
        if self.unpooling is not None:
            state.parts = self.unpooling.parts(state.smoothed).to(state.parts)

    def pool_step(self, h: Tensor, new: Tensor, state: StageState, rows: Tensor | None) -> Tensor:
        if self.pooling is None:
            return super().pool_step(h, new, state, rows)
        assert isinstance(state, PooledState)
        before = state.recent if rows is None else state.recent[rows]
        recent = torch.cat([before[:, 1:], h[:, None].to(before)], dim=1)
        state.recent = recent if rows is None else state.recent.index_copy(0, rows, recent)
        return self.pooling.of_windows(recent[new])

    def refine_step(self, y: Tensor, state: StageState, rows: Tensor | None) -> Tensor:
        if self.unpooling is None:
            return y
        assert isinstance(state, PooledState)
        assert isinstance(state.chunker, Count)
        if rows is None:
            rows = torch.arange(y.shape[0], device=y.device)
        places = (state.chunker.steps[rows] - 1) % self.unpooling.stride  # (S,)
        new = rows[places == 0]
        if len(new):
            parts = self.unpooling.parts(state.smoothed[new]).to(state.parts)
            state.parts = state.parts.index_copy(0, new, parts)
        return y + state.parts[rows, places]


class HNetXNSA(HNet):
    """Logits for the next token at every position; no position limit."""

    stage_class = PooledStage

    def __init__(self, config: HNetXNSAConfig) -> None:
        super().__init__(config)

    @torch.no_grad()
    def init_weights(self) -> None:
        """hnet's rule, in which an n layer's output counts as one to the residual stream;
        U_1, V_1   N(0, initializer_range^2);  U_2, V_2, e: 0
        """
        super().init_weights()
        for stage in self.stages():
            if isinstance(stage, PooledStage):
                stage.init_weights(self.config.initializer_range)

    def mixers(self) -> dict[str, SparseAttention]:
        """The NSA mixers, by their names in the model."""
        return {n: m for n, m in self.named_modules() if isinstance(m, SparseAttention)}


Model = HNetXNSA
