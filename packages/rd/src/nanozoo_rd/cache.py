"""Keys and values of the prelude, of every iteration of the core, and of the coda.

B batch, R rows of it, K head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from nanozoo_core.nn.cache import KVCache
from nanozoo_rd.config import EXIT_THRESHOLDS

if TYPE_CHECKING:
    from nanozoo_rd.config import RDConfig


@dataclass(frozen=True)
class Decoding:
    """How deep a trained model runs: at most `num_iterations`, fewer where a criterion says so,
    keeping the keys and values of `kv_budget` iterations. With `prefill` parallel, several tokens
    that a cache is given at once take all iterations side by side."""

    num_iterations: int
    criterion: Literal["none", "kl", "latent"] = "none"
    threshold: float = 0.0
    kv_budget: int | None = None
    prefill: Literal["sequential", "parallel"] = "sequential"

    @classmethod
    def of(cls, config: RDConfig) -> Decoding:
        threshold = config.exit_threshold or EXIT_THRESHOLDS.get(config.exit_criterion, 0.0)
        depth = config.depths.eval_recurrence
        return cls(depth, config.exit_criterion, threshold, config.kv_budget, config.prefill)

    def at(self, num_iterations: int | None) -> Decoding:
        """The same at another depth; None leaves it."""
        return self if num_iterations is None else replace(self, num_iterations=num_iterations)

    @property
    def num_slots(self) -> int:
        """Iterations that the cache holds."""
        return min(self.num_iterations, self.kv_budget or self.num_iterations)

    @property
    def is_sequential(self) -> bool:
        """Whether a token's result depends on how its predecessors were decoded, so that positions
        cannot be computed side by side."""
        return self.criterion != "none" or self.num_slots < self.num_iterations


class DepthCache(KVCache):
    """A KVCache whose layers are the prelude's, then `num_slots` iterations of the core's, then the
    coda's. Iteration i lies in slot i mod num_slots."""

    def __init__(
        self, config: RDConfig, decoding: Decoding, batch_size: int, max_length: int, like: Tensor
    ) -> None:
        self.decoding = decoding
        self.num_prelude = config.num_prelude_layers
        self.num_core = config.num_core_layers
        self.first_coda = self.num_prelude + decoding.num_slots * self.num_core
        super().__init__(
            self.first_coda + config.num_coda_layers,
            batch_size,
            max_length,
            config.num_heads,
            config.head_dim,
            device=like.device,
            dtype=like.dtype,
        )

    def core_layer(self, iteration: int) -> int:
        """Where the core's first layer lies for an iteration, counted from 0."""
        return self.num_prelude + (iteration % self.decoding.num_slots) * self.num_core

    @torch.no_grad()
    def leave(self, rows: Tensor, iteration: int) -> None:
        """The next token of `rows` (R,) ended with this iteration: slots that it did not reach get
        its last keys and values, the latest that later tokens can find there."""
        positions = self.lengths[rows]
        source = self.core_layer(iteration)
        for unreached in range(iteration + 1, self.decoding.num_slots):
            target = self.core_layer(unreached)
            for store in (self.keys, self.values):
                for layer in range(self.num_core):
                    last = store[source + layer][rows, :, positions]  # (R, H, K)
                    store[target + layer][rows, :, positions] = last


class Place(NamedTuple):
    """Where a block keeps its keys and values while decoding, and for which rows it runs."""

    cache: DepthCache
    layer: int
    rows: Tensor | None = None  # (R,); None is all of them
