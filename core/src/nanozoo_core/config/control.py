"""The settings of the control decoder, which the packages that change one thing of it share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nanozoo_core.config.ranges import Count, Layers
from nanozoo_core.errors import Problems


@dataclass(frozen=True)
class ControlConfig:
    """A subclass adds fields, and checks them in `check`."""

    not_of_the_weights: ClassVar[tuple[str, ...]] = ("seq_len",)
    """Settings that given weights (`init_from`) do not decide: trained weights mean the same under
    others."""

    vocab_size: int
    """Tokens in the vocabulary; null is the tokenizer's."""
    seq_len: int
    """Trained length, past which generation drops the older half of the text; null is
    data.seq_len."""
    num_layers: Layers
    """Blocks."""
    model_dim: Count
    """Width of the residual stream."""
    num_heads: Count
    """Attention heads, a divisor of model_dim."""
    mlp_ratio: float
    """Width of the MLP relative to model_dim."""

    def __post_init__(self) -> None:
        p = Problems()
        self.check(p)
        p.raise_if_any()

    def check(self, p: Problems) -> None:
        """Records what is wrong with these settings."""
        p.require_stack(self)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.model_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return int(self.mlp_ratio * self.model_dim)
