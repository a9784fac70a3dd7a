"""The settings of GPT-2. Nothing here imports torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.ranges import Layers
from nanozoo_core.errors import Problems


class Shape(NamedTuple):
    num_layers: int
    num_heads: int
    model_dim: int


PRESETS = {
    "gpt2": Shape(12, 12, 768),
    "gpt2-medium": Shape(24, 16, 1024),
    "gpt2-large": Shape(36, 20, 1280),
    "gpt2-xl": Shape(48, 25, 1600),
}
"""The four released sizes."""

TINY = Shape(4, 4, 128)


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int
    """Tokens in the vocabulary; null is the tokenizer's."""
    seq_len: int
    """Length of the position table, the longest text the model can read; null is data.seq_len."""
    preset: Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None
    """A released size: sets num_layers, num_heads and model_dim."""
    num_layers: Layers | None
    """Blocks; null is the preset's, or 4."""
    model_dim: int | None
    """Width of the residual stream; null is the preset's, or 128."""
    num_heads: int | None
    """Attention heads, a divisor of model_dim; null is the preset's, or 4."""
    mlp_ratio: float
    """Width of the MLP relative to model_dim."""
    activation: Literal["gelu_tanh", "gelu"]
    """gelu_tanh as released; gelu is the exact form of nanoGPT."""
    bias: bool
    """Biases in linear layers and LayerNorms; false is nanoGPT's variant."""
    tie_embeddings: bool
    """Use the input embedding as the output head."""
    dropout: float
    """Probability of dropping an activation; 0.1 suits several epochs over the same text."""
    pad_vocab_to: int
    """Round the embedding's rows up to a multiple of this, for speed; logits never see the rest."""

    def __post_init__(self) -> None:
        p = Problems()
        released = PRESETS.get(self.preset or "")
        published = {} if released is None else released._asdict()
        p.take_preset(self, self.preset, published, TINY._asdict())
        _, num_heads, model_dim = self.shape
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        p.require_at_least(
            self, dict.fromkeys(("num_layers", "num_heads", "model_dim", "pad_vocab_to"), 1)
        )
        p.require_heads(num_heads, model_dim)
        p.require_mlp(self)
        p.require(0 <= self.dropout < 1, f"model_cfg.dropout={self.dropout} must be in [0, 1)")
        p.raise_if_any()
        if (num_heads, model_dim) == (6, 768):
            warnings.warn(
                "model_cfg.num_heads=6 with model_cfg.model_dim=768 makes heads of width 128; "
                "GPT-2 has 12 heads of width 64",
                stacklevel=3,
            )

    @property
    def shape(self) -> Shape:
        """num_layers, num_heads and model_dim, which are never null once the config is made."""
        return Shape(self.num_layers, self.num_heads, self.model_dim)  # type: ignore[arg-type]

    @property
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return int(self.mlp_ratio * self.shape.model_dim)

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        if training.data.seq_len <= self.seq_len:
            return []
        return [
            f"data.seq_len={training.data.seq_len} is longer than the position table, "
            f"model_cfg.seq_len={self.seq_len}; use model_cfg.seq_len=null to follow data.seq_len"
        ]


Config = GPT2Config
