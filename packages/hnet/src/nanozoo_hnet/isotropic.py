"""A run of blocks of one width: every encoder, decoder and main network is one.

Shapes: B batch, L positions of the stage, D its model_dim, R rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.machine.precision import widened
from nanozoo_core.nn.feed_forward import SwiGLU
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.layout import Layer


class Block(nn.Module):
    """r <- r + mixer(norm(r)), and with a capital letter r <- r + mlp(norm(r))."""

    def __init__(
        self, config: HNetConfig, stage: int, layer: Layer, mixers: Mapping[str, Any]
    ) -> None:
        super().__init__()
        dim = config.per_stage("model_dim")[stage]
        self.mixer_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.mixer: Any = mixers[layer.letter](config, stage)
        self.mlp: SwiGLU | None = None
        if layer.has_mlp:
            self.mlp_norm = nn.RMSNorm(dim, eps=config.norm_eps)
            self.mlp = SwiGLU(dim, config.per_stage("mlp_dim")[stage])

    def forward(
        self, r: Tensor, state: Any, lengths: Tensor | None, documents: Tensor | None
    ) -> Tensor:
        r = r + self.mixer(self.mixer_norm(r), state, lengths, documents)
        return r if self.mlp is None else r + self.mlp(self.mlp_norm(r))

    def step(self, r: Tensor, state: Any, rows: Tensor | None) -> Tensor:
        r = r + self.mixer.step(self.mixer_norm(r), state, rows)
        return r if self.mlp is None else r + self.mlp(self.mlp_norm(r))


class Isotropic(nn.Module):
    """Pre-norm blocks on a float32 residual stream, closed by a norm.

    The closing norm balances the streams that meet behind a chunking (section 2.3.1 of the paper).
    """

    def __init__(
        self, config: HNetConfig, stage: int, layers: Sequence[Layer], mixers: Mapping[str, Any]
    ) -> None:
        """Args: mixers: the class of mixer that each letter of `layers` stands for."""
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, stage, layer, mixers) for layer in layers)
        self.norm = nn.RMSNorm(config.per_stage("model_dim")[stage], eps=config.norm_eps)

    @torch.no_grad()
    def init_weights(self, std: float, output_std: float) -> None:
        """Linear weights N(0, std^2), those that write to the residual stream N(0, output_std^2);
        convolutions, scan parameters and gains keep what they were built with."""
        for block in self.each_block():
            outputs = [block.mixer.out_proj] + ([block.mlp.down] if block.mlp is not None else [])
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(std=output_std if module in outputs else std)

    def each_block(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def empty_states(self, batch_size: int, max_length: int) -> list[Any]:
        """A decoding state for each block."""
        return [block.mixer.empty_state(batch_size, max_length) for block in self.each_block()]

    def forward(
        self, x: Tensor, states: list[Any] | None = None, lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, L, D) -> (B, L, D). With `states` (empty ones) it leaves in them what lies behind
        each row's end (`lengths`); nothing passes between `documents` (B, L)."""
        r = widened(x)
        for block, state in zip(
            self.each_block(), states or [None] * len(self.blocks), strict=True
        ):
            r = block(r, state, lengths, documents)
        return self.norm(r)

    def step(self, x: Tensor, states: list[Any], rows: Tensor | None = None) -> Tensor:
        """One position, (R, D) -> (R, D), of all rows or of `rows` (R,)."""
        r = widened(x)
        for block, state in zip(self.each_block(), states, strict=True):
            r = block.step(r, state, rows)
        return self.norm(r)
