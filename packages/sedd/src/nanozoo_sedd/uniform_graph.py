"""Uniform noise: a corrupted token becomes any token, so every token has scores to learn.

B windows, L scored tokens, V data tokens, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanozoo_core.contract import Batch, Curves, Draw, Inspection, Step, Vocabulary
from nanozoo_core.diffusion.levels import INSPECTION_SEED, LEVELS, num_scored
from nanozoo_core.diffusion.sampling import (
    NoiseSource,
    WindowNoise,
    draw_noise,
    draw_window_noise,
)
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import inspect_levels
from nanozoo_sedd import uniform
from nanozoo_sedd.generate import jump
from nanozoo_sedd.model import SEDD

CHUNK_BYTES = 64 << 20  # of one (rows, V) float32 tensor of the decoder


class UniformTerms(NamedTuple):
    """The bound of each window, (B,) nats; `total` is their sum."""

    integral: Tensor
    prior: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.integral + self.prior + self.reconstruction


class UniformGraph:
    """Training, score and sampling under uniform noise."""

    def __init__(self, model: SEDD) -> None:
        self.model = model

    def training_sum(self, batch: Batch, step: Step) -> Tensor:
        """The integrand summed over the windows, at times in (t_min, 1] or in the part of them that
        training is to see."""
        config = self.model.config
        noise = draw_window_noise(step, batch, stratified=config.stratified)
        first, last = self.model.training_noise.of_times(self.model.schedule)
        first = max(config.t_min, first)
        times = first + (last - first) * (1 - noise.level)
        nats = self._integral(batch, times, noise.uniforms)
        return (last - first) * nats.sum()

    def nats(self, batch: Batch, draw: Draw) -> Tensor:
        """One draw of the bound per window, (B,)."""
        return self.terms(batch, self.noise(draw, batch)).total

    def noise(self, source: NoiseSource, batch: Batch) -> WindowNoise:
        """A level for each window, and two uniforms per token: the second is for the
        reconstruction."""
        return draw_noise(source, batch.rows, batch.num_rows, 2, batch.window.shape[1] - 1)

    def terms(self, batch: Batch, noise: WindowNoise) -> UniformTerms:
        """One draw: an x_t at a stratified time in (0, 1], and another x_t at t = 0 to decode."""
        model, window = self.model, batch.window
        times, weights = uniform.spread_times(noise.level, model.schedule)
        integral = self._integral(batch, times, noise.uniforms[:, 0])
        integral = integral * weights.to(integral)
        reconstruction = uniform.reconstruction(
            lambda corrupted, tokens, sigma: self._decode(window[:, :1], corrupted, tokens, sigma),
            window[:, 1:],
            noise.uniforms[:, 1],
            schedule=model.schedule,
            vocab_size=model.vocab_size,
            scored=batch.scored,
        )
        prior = uniform.prior_kl(model.schedule, model.vocab_size)
        return UniformTerms(
            integral, num_scored(batch).to(integral) * prior, reconstruction.to(integral)
        )

    def _integral(self, batch: Batch, times: Tensor, uniforms: Tensor) -> Tensor:
        """The integrand at times (B,), with one x_t each: (B,)."""
        model, context = self.model, batch.window[:, :1]
        return uniform.integral(
            lambda corrupted, tokens, sigma: model.score_sums(corrupted, tokens, sigma, context),
            batch.window[:, 1:],
            times,
            uniforms,
            schedule=model.schedule,
            vocab_size=model.vocab_size,
            scored=batch.scored,
        )

    def _decode(self, context: Tensor, corrupted: Tensor, tokens: Tensor, sigma: float) -> Tensor:
        """log p(x_0 = tokens | x_t = corrupted), each (B, L), some rows at a time."""
        model = self.model
        noise = torch.full((1,), sigma, dtype=torch.float64)
        window = torch.cat([context, corrupted], dim=1)
        features = model.features(window, noise)[:, 1:].flatten(0, 1)
        own, true = corrupted.flatten(), tokens.flatten()
        size = max(1, CHUNK_BYTES // (4 * model.vocab_size))
        log_probs = []
        for start in range(0, len(own), size):
            rows = slice(start, start + size)
            scores = model.log_scores(features[rows], own[rows], sigma).exp()
            probs = uniform.decoder_probs(scores, own[rows], sigma)
            log_probs.append(probs.gather(1, true[rows, None])[:, 0].log())
        return torch.cat(log_probs).view_as(tokens)

    def inspect(self, batches: Sequence[Batch], vocabulary: Vocabulary) -> Inspection | None:
        """The three terms of the bound, and the first of them by time."""

        def look(batch: Batch) -> tuple[Tensor, Tensor]:
            noise = self.noise(Draw(INSPECTION_SEED), batch)
            return noise.level, torch.stack(self.terms(batch, noise), dim=1)

        def picture(parts: list[list[float]]) -> Curves:
            centres = (torch.arange(LEVELS) + 0.5) / LEVELS
            times, _ = uniform.spread_times(centres, self.model.schedule)
            points = sorted(zip(times.tolist(), (row[0] for row in parts), strict=True))
            title = "The integral by time, in parts of equal weight"
            return Curves(title, "time", "nats per token", {"integral": points})

        return inspect_levels(batches, vocabulary, UniformTerms._fields, look, picture)

    def steps(self, holes: Holes) -> Iterator[Tensor]:
        """The windows (B, S) after each step that moved a token."""
        model, config = self.model, self.model.config
        assert config.predictor != "first_hitting"

        def log_scores(window: Tensor, sigma: float, rows: Tensor) -> Tensor:
            features = model.features_at(window, sigma, rows)
            return model.log_scores(features, window.flatten()[rows], sigma)

        return jump(
            log_scores,
            holes,
            vocab_size=model.vocab_size,
            num_steps=holes.settings.num_steps or config.sampling_steps,
            schedule=model.schedule,
            predictor=config.predictor,
        )
