from __future__ import annotations

from nanozoo_core.nn.control import ControlModel
from nanozoo_toy.config import ToyConfig


class Toy(ControlModel):
    def __init__(self, config: ToyConfig) -> None:
        assert config.vocab_size is not None
        super().__init__(
            config.vocab_size,
            num_layers=config.num_layers,
            model_dim=config.model_dim,
            num_heads=config.num_heads,
        )
        self.config = config


Model = Toy
