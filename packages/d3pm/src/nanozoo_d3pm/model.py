"""D3PM: a corruption process and the network that undoes it.

B windows, S = L + 1 positions (one context token, L scored ones), D model_dim, V data tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.diffusion.model import DiffusionModel
from nanozoo_d3pm.config import D3PMConfig
from nanozoo_d3pm.graph_transitions import Clusters, Spectral
from nanozoo_d3pm.transitions import Absorbing, Band, Gaussian, Transition, Uniform


def make_transition(config: D3PMConfig) -> Transition:
    """The process that `config` asks for. Raises: ConfigError when its prior term is not small."""
    size, num_timesteps = config.vocab_size, config.num_timesteps
    if config.transition_type == "absorbing":
        return Absorbing(size, num_timesteps, config.noise_schedule)
    if config.transition_type == "uniform":
        return Uniform(size, num_timesteps, config.noise_schedule)
    if config.transition_type == "gaussian":
        return Gaussian(
            size,
            num_timesteps,
            beta_min=config.gaussian_beta_min,
            beta_max=config.gaussian_beta_max,
            terminal_mask=config.has_terminal_mask,
        )
    if config.transition_type == "band":
        return Band(
            size,
            num_timesteps,
            width=config.band_width,
            noise_schedule=config.noise_schedule,
            terminal_mask=config.has_terminal_mask,
        )
    settings: dict[str, Any] = {
        "noise_schedule": config.noise_schedule,
        "uniform_rate": config.nn_uniform_rate,
        "terminal_mask": config.has_terminal_mask,
    }
    neighbors = config.nearest_neighbors
    if config.uses_clusters:
        return Clusters(size, num_timesteps, cluster_size=neighbors + 1, **settings)
    return Spectral(size, num_timesteps, num_neighbors=neighbors, **settings)


class D3PM(DiffusionModel):
    """`net` reads x_t and t and predicts x_0; `transition` says what that means for x_{t-1}."""

    def __init__(self, config: D3PMConfig) -> None:
        transition = make_transition(config)
        super().__init__(
            config,
            num_input_ids=transition.num_input_ids,
            time_conditioning=config.knows_time,
        )
        self.config = config
        self.transition = transition

    @property
    def mask_id(self) -> int | None:
        return self.transition.mask_id

    def time_input(self, t: Tensor) -> Tensor:
        """t = 1 .. T on the scale of the time features, whose shortest period is 2 pi."""
        return 1000 * t / self.config.num_timesteps

    def features(self, tokens: Tensor, t: Tensor) -> Tensor:
        """(B, S, D) for the corrupted window (B, S) at t (B,)."""
        return self.net.features(tokens, self.time_input(t).to(tokens.device, torch.float32))

    def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
        """Logits (B, S, V) of x_0, of each token given the *others*."""
        return self.net.logits(self.features(tokens, t))


Model = D3PM
