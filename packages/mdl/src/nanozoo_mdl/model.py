"""MDLM: a bidirectional transformer that predicts masked tokens from all others.

The head has no column for the mask, so it can never be predicted, and a clean token is neither
scored nor resampled: the paper's SUBS parameterization by construction.

B windows, S = L + 1 positions (one context token, L scored ones), V data tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.diffusion.bounds import DiscreteCounts
from nanozoo_core.diffusion.model import DiffusionModel
from nanozoo_core.diffusion.schedules import Cosine, CosineSquared, Linear, Schedule
from nanozoo_mdl.blocks import Blocks
from nanozoo_mdl.config import MDLMConfig

SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "cosine_sq": CosineSquared(),
}
MAX_SIGMA = 14.0  # one token in a million is clean; all masked, at t = 1, it would be infinite


class MDLM(DiffusionModel):
    """Reads ids 0 .. V, where V is the mask, and predicts 0 .. V-1."""

    def __init__(self, config: MDLMConfig) -> None:
        super().__init__(
            config,
            num_input_ids=config.vocab_size + 1,
            time_conditioning=config.time_conditioning,
            adaln_when_unconditioned=config.adaln_when_unconditioned,
        )
        self.config = config
        self.schedule = SCHEDULES[config.alpha_type]
        self.blocks = Blocks(
            config.block_size or config.seq_len,
            num_heads=config.num_heads,
            locality=config.locality,
        )
        self._count_laws: dict[int, DiscreteCounts] = {}

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    def time_input(self, time: Tensor) -> Tensor:
        """What the network reads of the time: sigma = -log alpha, (B,)."""
        return self.schedule.sigma(time).clamp(max=MAX_SIGMA)

    def forward(self, tokens: Tensor, time: Tensor | None = None) -> Tensor:
        """Logits (B, S, V) for windows (B, S) with masks at time (B,) in [0, 1], or (B, S) of each
        token. Where windows are cut into blocks, each is predicted from those before it as they
        stand, and from itself."""
        told = None if time is None else self.time_input(time).float()
        num_positions = tokens.shape[1]
        if self.blocks.number(num_positions - 1) <= 1:
            return self.net(tokens, told)
        view = self.blocks.causal_view(num_positions, tokens.device)
        return self.net.logits(self.net.features(tokens, told, view=view))

    def count_law(self, length: int) -> DiscreteCounts:
        """How many of `length` tokens are masked, and when, in the model of num_timesteps."""
        assert self.config.num_timesteps is not None
        if length not in self._count_laws:
            t = torch.arange(self.config.num_timesteps + 1, dtype=torch.float64, device="cpu")
            noise = self.schedule.noise(t / self.config.num_timesteps)
            noise[-1] = 1.0  # a cosine of pi / 2 is not quite 0
            self._count_laws[length] = DiscreteCounts(1 - noise, length)
        return self._count_laws[length]


Model = MDLM
