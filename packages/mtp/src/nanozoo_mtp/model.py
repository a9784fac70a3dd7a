"""The control decoder whose last blocks stand side by side: head i looks i tokens ahead.

B batch, T sequence, D model_dim, V vocabulary; horizons i = 1 .. n.
"""

from __future__ import annotations

from torch import Tensor, nn

from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles
from nanozoo_mtp.config import MTPConfig


class MTP(ControlModel):
    """z = trunk(x);  logits_i = U norm(head_i(z)), with one norm and one U for all heads.

    Heads of type block are the last n blocks, so that parameters are the control's, and weights
    start as the control's with one seed. Head 1 behind the trunk is a plain decoder: it is what
    `forward` and the score use.
    """

    config: MTPConfig

    def __init__(self, config: MTPConfig) -> None:
        super().__init__(config)
        num_maps = config.num_mtp_tokens - 1 if config.head_type == "linear" else 0
        maps = [nn.Linear(config.model_dim, config.model_dim, bias=False) for _ in range(num_maps)]
        for linear in maps:  # every horizon starts as the first
            nn.init.zeros_(linear.weight)
        self.maps = nn.ModuleList(maps)

    @property
    def num_prediction_heads(self) -> int:
        """n where each horizon has a head of its own, else 1."""
        return self.config.num_mtp_tokens if self.config.has_own_heads else 1

    def trunk(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Angles]:
        """The stream that all heads read, (B, T, D), not normalised; and the rotary angles."""
        z, angles = self.embed(tokens, cache)
        for layer in range(self.config.num_trunk_layers):
            z = self.blocks[layer](z, angles, cache=cache, layer=layer)
        return z, angles

    def look_ahead(
        self, horizon: int, z: Tensor, angles: Angles, cache: KVCache | None = None
    ) -> Tensor:
        """Features (B, T, D) of head `horizon`, 1 .. n, from the trunk's stream."""
        if self.config.head_type == "block":
            layer = self.config.num_trunk_layers + horizon - 1
            z = self.blocks[layer](z, angles, cache=cache, layer=layer)
        elif horizon > 1:
            z = z + self.maps[horizon - 2](rms_norm(z))
        return rms_norm(z)

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Head 1's features (B, T, D) for tokens (B, T); `cache` continues a sequence."""
        return self.horizons(tokens, cache, count=1)[0]

    def horizons(
        self, tokens: Tensor, cache: KVCache | None = None, *, count: int | None = None
    ) -> list[Tensor]:
        """Features (B, T, D) of the first `count` prediction heads; None is all."""
        z, angles = self.trunk(tokens, cache)
        numbers = range(1, 1 + (self.num_prediction_heads if count is None else count))
        found = [self.look_ahead(number, z, angles, cache) for number in numbers]
        if cache is not None:
            cache.advance(tokens.shape[1])
        return found

    def init_cache(
        self, batch_size: int, max_length: int, *, num_prediction_heads: int = 1
    ) -> KVCache:
        """Room for the trunk and the first `num_prediction_heads` heads."""
        num_blocks = num_prediction_heads if self.config.head_type == "block" else 0
        return self.new_cache(self.config.num_trunk_layers + num_blocks, batch_size, max_length)


Model = MTP
