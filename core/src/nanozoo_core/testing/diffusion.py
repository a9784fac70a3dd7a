"""What tests of diffusion models share: their contract, and exact bounds of small vocabularies.

B windows, L scored tokens, V vocabulary, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.diffusion.bounds import TokenLoss, draw_by_count, draw_by_time, draw_nats
from nanozoo_core.diffusion.sampling import WindowNoise
from nanozoo_core.diffusion.schedules import Schedule
from nanozoo_core.testing.contract_kit import ModelContract
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(corrupted (B, L), time (B,)) -> log-probabilities (B, L, V) of the clean tokens."""


class DiffusionContract(ModelContract):
    """The contract of a model that sees a text from both sides."""

    gradient_steps = 4  # zero head, then zero gates, then what lies behind them
    overfit_steps = 500
    overfit_copies = 16
    entropy_steps = 800
    entropy_windows = 64
    lr = 5e-3
    noise_levels: tuple[float, float]  # of two windows, as the model's forward pass takes them

    def is_told_the_noise(self, config: Any) -> bool:
        """Whether the network has a time embedding and adaLN."""
        return config.knows_time

    def num_parameters(self, config: Any) -> int:
        v, d, n, c = config.vocab_size, config.model_dim, config.num_layers, config.cond_dim
        count = (v + 1) * d + v * (d + 1) + n * (12 * d * d + 7 * d) + d
        if self.is_told_the_noise(config):
            count += n * 6 * d * (c + 1) + 2 * d * (c + 1) + 257 * c + c * c + c
        return count

    def test_a_change_leaves_earlier_predictions_untouched(self) -> None:
        """The model's own rule: every position sees every other, on both sides."""
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        tokens = self.random_tokens(self.toy_vocab, 2)
        place = self.seq_len // 2
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % self.toy_vocab
        levels = torch.tensor(self.noise_levels)
        with torch.no_grad():
            difference = (model(tokens, levels) - model(changed, levels)).abs().amax((0, 2))
        assert float(difference.min()) > 0

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        """No cache outlives a change anywhere in a bidirectional window, so there is none; what is
        skipped instead are steps that change nothing, which the packages test."""


# -- exact bounds ---------------------------------------------------------------------------------


def denoiser_loss(denoiser: Denoiser, mask_id: int) -> TokenLoss:
    """Cross-entropy of a denoiser that shows all its log-probabilities."""

    def loss(targets: Tensor, masked: Tensor, time: Tensor) -> Tensor:
        log_probs = denoiser(targets.masked_fill(masked, mask_id), time)
        losses = -log_probs.gather(-1, targets[..., None])[..., 0]
        return torch.where(masked, losses, 0)

    return loss


def count_form(
    token_loss: TokenLoss,
    targets: Tensor,
    noise: WindowNoise,
    *,
    schedule: Schedule,
    scored: Tensor | None = None,
) -> Tensor:
    """(B,) nats of `draw_by_count`."""
    return draw_nats(token_loss, targets, draw_by_count(noise, schedule=schedule, scored=scored))


def time_form(
    token_loss: TokenLoss,
    targets: Tensor,
    noise: WindowNoise,
    *,
    schedule: Schedule,
    time_min: float = 0.0,
    scored: Tensor | None = None,
) -> Tensor:
    """(B,) nats of `draw_by_time`."""
    draw = draw_by_time(noise, schedule=schedule, time_min=time_min, scored=scored)
    return draw_nats(token_loss, targets, draw)


def enumerate_sequences(vocab_size: int, length: int) -> Tensor:
    """All vocab_size^length sequences, (N, length) int64."""
    digits = [torch.arange(vocab_size)] * length
    return torch.cartesian_prod(*digits).reshape(-1, length)


def exact_masked_bound(
    token_loss: TokenLoss, targets: Tensor, keep: Tensor | None = None
) -> Tensor:
    """The bound of each row of `targets` (B, L), summed over all 2^L masks: (B,) nats.

    Args: keep: (T + 1,) alpha at t = 0 .. T for the T-step bound; None for continuous time (with a
        denoiser that ignores the time, which is passed as t / T, or 0 in continuous time).
    """
    batch, length = targets.shape
    total = torch.zeros(batch, dtype=torch.float64)
    for pattern in enumerate_sequences(2, length).bool():
        k = int(pattern.sum())
        if k == 0:
            continue
        masked = pattern.expand(batch, -1)
        if keep is None:
            weight = 1 / (k * math.comb(length, k))
            total += weight * token_loss(targets, masked, torch.zeros(batch)).sum(1)
            continue
        for t in range(1, keep.numel()):
            noise = 1 - float(keep[t])
            weight = float(keep[t - 1] - keep[t]) * noise ** (k - 1) * (1 - noise) ** (length - k)
            time = torch.full((batch,), t / (keep.numel() - 1), dtype=torch.float64)
            total += weight * token_loss(targets, masked, time).sum(1)
    return total
