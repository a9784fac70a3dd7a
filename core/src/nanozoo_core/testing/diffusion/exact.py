"""Exact bounds of small vocabularies, and estimates of them.

B windows, L scored tokens, V vocabulary, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanozoo_core.diffusion.bounds import TokenLoss, draw_by_count, draw_by_time, draw_nats
from nanozoo_core.diffusion.sampling import WindowNoise
from nanozoo_core.diffusion.schedules import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(corrupted (B, L), time (B,)) -> log-probabilities (B, L, V) of the clean tokens."""


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
    time_max: float = 1.0,
    scored: Tensor | None = None,
) -> Tensor:
    """(B,) nats of `draw_by_time`."""
    ends = {"time_min": time_min, "time_max": time_max}
    draw = draw_by_time(noise, schedule=schedule, scored=scored, **ends)
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
