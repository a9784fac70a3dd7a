"""SEDD: a network that predicts ratios of probabilities.

B windows, S = L + 1 positions (one context token, L scored ones), D model_dim, V data tokens,
N rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanozoo_core.diffusion.model import DiffusionModel
from nanozoo_core.diffusion.schedules import Geometric, Linear, Schedule
from nanozoo_core.machine.precision import widened
from nanozoo_core.ops.log_mixture import log_mixture
from nanozoo_sedd.config import SEDDConfig
from nanozoo_sedd.kernels.score_sums import score_sums
from nanozoo_sedd.uniform import ScoreSums, mixture_sums


def make_schedule(config: SEDDConfig) -> Schedule:
    """sigma(t) in training, and everywhere under the uniform process."""
    if config.schedule_name == "geometric":
        return Geometric(config.sigma_min, config.sigma_max)
    return Linear(config.noise_eps)


class SEDD(DiffusionModel):
    """`net` reads x_t and sigma, and its output a (V values, none for the mask) gives the scores:

    absorbing          log s_y = a_y - log V - log(e^sigma - 1) at a mask, so that u_y = e^{a_y} / V
                       is the prediction of x_0, a measure that only training makes sum to one
    uniform, raw       log s_y = a_y
    uniform, denoiser  s_y = (1 + h p_y) / (1 + h p_{x_t}), p = softmax(a), h = V / (e^sigma - 1)

    At x_t's own value log s is 0 whatever the network says.
    """

    def __init__(self, config: SEDDConfig) -> None:
        super().__init__(
            config,
            num_input_ids=config.vocab_size + config.is_absorbing,
            time_conditioning=config.knows_time,
        )
        self.config = config
        self.schedule = make_schedule(config)

    @property
    def mask_id(self) -> int | None:
        return self.vocab_size if self.config.is_absorbing else None

    def told(self, sigma: Tensor) -> Tensor:
        """What the network is told of sigma, which may be infinite: no more than in training."""
        return sigma.clamp(max=self.config.largest_sigma)

    def features(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        """(B, S, D) for the corrupted window (B, S) at sigma (B,)."""
        return self.net.features(tokens, self.told(sigma).to(tokens.device, torch.float32))

    def features_at(self, tokens: Tensor, sigma: float, rows: Tensor) -> Tensor:
        """(N, D) at some `rows` (N,) of the flattened windows (B, S), all of them at one sigma."""
        noise = torch.full((1,), sigma, dtype=torch.float64)
        return self.features(tokens, noise).flatten(0, 1)[rows]

    def forward(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        """a (B, S, V)."""
        return self.net.logits(self.features(tokens, sigma))

    def score_sums(
        self, corrupted: Tensor, tokens: Tensor, sigma: Tensor, context: Tensor
    ) -> ScoreSums:
        """Sums of the scores at uniformly corrupted tokens (B, L) after the clean `context` (B, 1),
        with `tokens` (B, L) the true ones; sigma (B,) on the CPU."""
        features = self.features(torch.cat([context, corrupted], dim=1), sigma)[:, 1:].flatten(0, 1)
        head = (self.net.output_weight, self.net.output_bias)
        own, true = corrupted.flatten(), tokens.flatten()
        if self.config.score_param == "raw":
            parts = score_sums(features, *head, own, true)
            return ScoreSums(*(part.view_as(tokens) for part in parts))
        spread = self.vocab_size / torch.expm1(sigma)[:, None]  # (B, 1)
        each = spread.float().to(tokens.device).expand_as(tokens).flatten()
        parts = log_mixture(features, *head, own, true, each)
        log_own, log_true, sum_log1p = (part.view_as(tokens) for part in parts)
        return mixture_sums(log_own, log_true, sum_log1p, spread, self.vocab_size)

    def log_measure(self, features: Tensor) -> Tensor:
        """log u (N, V) of masked tokens from their features (N, D), float32 or wider."""
        # log s may be -18, where bfloat16 has steps of 1/8.
        return widened(self.net.logits(features)) - math.log(self.vocab_size)

    def log_scores(self, features: Tensor, own: Tensor, sigma: float) -> Tensor:
        """log s (N, V) under uniform noise, from the features (N, D) of the tokens `own` (N,)."""
        logits = widened(self.net.logits(features))
        if self.config.score_param == "denoiser":
            spread = self.vocab_size / math.expm1(sigma)
            logits = torch.log1p(spread * logits.softmax(-1))
            logits = logits - logits.gather(-1, own[:, None])
        return logits.scatter(-1, own[:, None], 0.0)


Model = SEDD
