from __future__ import annotations

from dataclasses import dataclass

from nanozoo_core.errors import Problems, divisors


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int | None = None
    """Ids; null takes the tokenizer's."""
    num_layers: int = 1
    """Blocks."""
    model_dim: int = 16
    """Width."""
    num_heads: int = 2
    """Attention heads."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require(
            self.model_dim % self.num_heads == 0,
            f"model_cfg.num_heads={self.num_heads} does not divide "
            f"model_cfg.model_dim={self.model_dim}; use {divisors(self.model_dim)}",
        )
        p.require(self.num_layers >= 1, f"model_cfg.num_layers={self.num_layers} must be >= 1")
        p.raise_if_any()


Config = ToyConfig
