"""The control, which is this package's default: the plain pre-norm decoder of today.

    x = RMSNorm(E[tokens])                                    ControlModel.embed
    for each block:   x = x + Attention(RMSNorm(x))           ControlBlock.delta
                      x = x + W_down relu(W_up RMSNorm(x))^2
    logits = W_head RMSNorm(x)                                ControlModel.features, logits

Its equations stand in `nanozoo_core.nn.control`, where other packages change one of them. The
presets v0 .. v16, which lead to it from the Transformer of 2017, are `historical.Decoder`.

B batch, T sequence, D model_dim, V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from nanozoo_core.nn.control import ControlModel
from nanozoo_core.nn.padding import padding_bias
from nanozoo_vanilla.config import VanillaConfig


class Control(ControlModel):
    """Core's control, with room for rows that pad the vocabulary."""

    config: VanillaConfig

    def __init__(self, config: VanillaConfig) -> None:
        super().__init__(config, num_rows=config.num_rows)
        bias = padding_bias(config.vocab_size, config.num_rows)  # (P,)
        self.register_buffer("output_bias", bias, persistent=False)

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return self.head(features)[..., : self.config.vocab_size]


Model = Control
