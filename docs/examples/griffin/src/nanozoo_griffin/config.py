"""The settings of griffin. Their values stand in conf/model/griffin.yaml alone."""

from __future__ import annotations

from dataclasses import dataclass

from nanozoo_core.config.ranges import Count, Layers
from nanozoo_core.errors import Problems, divisors


@dataclass(frozen=True)
class GriffinConfig:
    vocab_size: int
    """Tokens in the vocabulary; null is the tokenizer's."""
    seq_len: int
    """Trained length; null is data.seq_len. Generation may go on beyond it."""
    num_layers: Layers
    """Residual blocks."""
    model_dim: Count
    """Width of the residual stream."""
    num_heads: Count
    """Query heads of the local attention, which share one head of keys and values."""
    recurrent_dim: Count
    """Width of the recurrent blocks, 4/3 of model_dim in the paper."""
    mlp_dim: Count
    """Width of the gated MLP, 3 model_dim in the paper."""
    pattern: str
    """The kinds of the layers, repeated: r is a recurrent block, a is local attention."""
    window: Count
    """How many earlier positions local attention sees besides a token's own."""
    conv_kernel: Count
    """Taps of the convolution in front of the recurrence."""
    num_gate_blocks: Count
    """Blocks of the gates' block-diagonal weights, a divisor of recurrent_dim."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        p.require_at_least(self, {"num_layers": 1, "conv_kernel": 2})
        p.require_rotary_heads(self.num_heads, self.model_dim)
        p.require(
            self.pattern != "" and set(self.pattern) <= {"r", "a"},
            f"model_cfg.pattern={self.pattern} must be made of r and a, such as rra",
        )
        p.require(
            self.recurrent_dim % self.num_gate_blocks == 0,
            f"model_cfg.num_gate_blocks={self.num_gate_blocks} does not divide "
            f"model_cfg.recurrent_dim={self.recurrent_dim}; use {divisors(self.recurrent_dim)}",
        )
        p.raise_if_any()

    @property
    def kinds(self) -> str:
        """The kind of every layer, r or a."""
        return (self.pattern * self.num_layers)[: self.num_layers]

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.model_dim // self.num_heads


Config = GriffinConfig
