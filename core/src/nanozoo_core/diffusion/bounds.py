"""Estimators of the masked-diffusion bound over any denoiser: a network, or a table in a test.

-log p(x) <= Int_0^1 w(t) E sum_{i masked} loss_i dt (arXiv 2406.07524, eq. 10), or the same over T
discrete times. Everywhere the mask's own probability is 0 and clean tokens contribute nothing.

B windows, L scored tokens, V vocabulary, n gathered rows, T timesteps, N runs of tokens that a
window is cut into where noise is drawn for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.diffusion.sampling import (
    WindowNoise,
    choose_masked,
    mask_counts,
    masked_times,
)
from nanozoo_core.diffusion.schedules import Schedule
from nanozoo_core.ops.linear_cross_entropy import linear_cross_entropy


class TokenLoss(Protocol):
    """Losses (B, L) in nats of `targets` where `masked` (B, L) is True, 0 elsewhere, with those
    positions hidden at `time` (B,), or (B, N) of each run."""

    def __call__(self, targets: Tensor, masked: Tensor, time: Tensor) -> Tensor: ...


class Network(Protocol):
    """What is read of a `DiT`, or of what stands in its place."""

    @property
    def output_weight(self) -> Tensor: ...

    @property
    def output_bias(self) -> Tensor: ...

    def features(self, tokens: Tensor, time: Tensor) -> Tensor:
        """What the head reads, (B, L + 1, D), of windows (B, L + 1) that hold masks, at the times
        of the draw."""
        ...


def network_loss(
    net: Network,
    context: Tensor,
    mask_id: int,
    time_input: Callable[[Tensor], Tensor] | None = None,
    *,
    normalised: bool = True,
) -> TokenLoss:
    """Cross-entropy of a network that also reads the clean token `context` (B, 1) before them.

    Only the masked rows go through the head. `masked` is best left on the CPU, where the rows can
    be counted without waiting for the device; `time_input` turns time into what the net reads.
    With normalised=False the logits are those of a measure (see `linear_cross_entropy`).
    """

    def loss(targets: Tensor, masked: Tensor, time: Tensor) -> Tensor:
        rows, features = _masked_features(net, context, targets, masked, time, mask_id, time_input)
        losses = linear_cross_entropy(
            features,
            net.output_weight,
            targets.flatten()[rows],
            bias=net.output_bias,
            normalised=normalised,
            reduction="none",
        )
        empty = torch.zeros(targets.numel(), device=targets.device, dtype=losses.dtype)
        return empty.index_put((rows,), losses).view_as(targets)

    return loss


def network_draw_sum(
    net: Network,
    context: Tensor,
    mask_id: int,
    targets: Tensor,
    draw: MaskDraw,
    time_input: Callable[[Tensor], Tensor] | None = None,
    *,
    normalised: bool = True,
) -> Tensor:
    """The sum of `draw_nats` with `network_loss` over all windows, for training: with each row's
    weight known beforehand the head needs one matrix product less."""
    rows, features = _masked_features(
        net, context, targets, draw.masked, draw.time, mask_id, time_input
    )
    weight = draw.by_token(draw.weight.float())[draw.masked]
    return linear_cross_entropy(
        features,
        net.output_weight,
        targets.flatten()[rows],
        bias=net.output_bias,
        token_weight=weight.to(targets.device),
        normalised=normalised,
        reduction="sum",
    )


def _masked_features(
    net: Network,
    context: Tensor,
    targets: Tensor,
    masked: Tensor,
    time: Tensor,
    mask_id: int,
    time_input: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Places of the masked tokens in the flattened targets, (n,), and what the head reads there,
    (n, D)."""
    device = targets.device
    rows = masked.flatten().nonzero()[:, 0].to(device)  # (n,)
    corrupted = targets.masked_fill(masked.to(device), mask_id)
    seen = time_input(time) if time_input is not None else time
    features = net.features(torch.cat([context, corrupted], dim=1), seen.float().to(device))
    return rows, features[:, 1:].flatten(0, 1)[rows]


@dataclass(frozen=True)
class MaskDraw:
    """Which tokens to hide, when, and the factor on their summed losses: one unbiased draw of the
    bound for each window, or for each run of `run` tokens of it, the last of which may be
    shorter."""

    masked: Tensor  # (B, L) bool, on the CPU
    time: Tensor  # (B,) or (B, N) float64
    weight: Tensor  # (B,) or (B, N) float64
    run: int | None = None

    def by_token(self, values: Tensor) -> Tensor:
        """Values like `weight` for every token, (B, L)."""
        if self.run is None:
            return values[:, None].expand(self.masked.shape)
        return values.repeat_interleave(self.run, dim=1)[:, : self.masked.shape[1]]

    def weighted(self, losses: Tensor) -> Tensor:
        """(B,): losses (B, L) of the tokens, summed and weighted."""
        if self.run is not None:
            missing = -losses.shape[1] % self.run
            losses = F.pad(losses, (0, missing)).unflatten(1, (-1, self.run))  # (B, N, run)
        weighted = losses.sum(-1) * self.weight.to(losses)
        return weighted if self.run is None else weighted.sum(1)


def draw_in_runs(
    draw: Callable[..., MaskDraw], noise: WindowNoise, run: int, scored: Tensor | None = None
) -> MaskDraw:
    """A draw of its own for every run of `run` tokens.

    Args: draw: one of the functions below, with all but the noise and `scored` bound. noise: level
        (B, N), uniforms (B, L).
    """
    batch, length = noise.uniforms.shape
    missing = -length % run
    if missing and scored is None:
        scored = torch.ones(batch, length, dtype=torch.bool, device="cpu")

    def cut(x: Tensor) -> Tensor:
        return F.pad(x, (0, missing)).reshape(-1, run)  # (B N, run)

    drawn = draw(
        WindowNoise(noise.level.flatten(), cut(noise.uniforms)),
        scored=None if scored is None else cut(scored),
    )
    masked = drawn.masked.reshape(batch, -1)[:, :length]
    time, weight = (x.view(noise.level.shape) for x in (drawn.time, drawn.weight))
    return MaskDraw(masked, time, weight, run)


def draw_by_count(
    noise: WindowNoise, *, schedule: Schedule, scored: Tensor | None = None
) -> MaskDraw:
    """The continuous-time bound with the number k of masked tokens stratified:
    n E_k E_{|M|=k} (1/k) sum_{i in M} loss_i.

    Args: noise: uniforms (B, L). scored: (B, L) which positions count; the rest are clean context.
    """
    num_scored = _num_scored(noise, scored)
    counts = mask_counts(noise.level, num_scored)
    masked = choose_masked(noise.uniforms, counts, scored)
    time = schedule.time_of_noise(masked_times(noise.uniforms, counts, scored))
    return MaskDraw(masked, time, (num_scored / counts.clamp(min=1)).double())


def draw_by_time(
    noise: WindowNoise,
    *,
    schedule: Schedule,
    time_min: float = 0.0,
    time_max: float = 1.0,
    scored: Tensor | None = None,
) -> MaskDraw:
    """The same with the time stratified on [time_min, time_max]: w(t) sum_{i in M} loss_i.

    Unbiased for all of [0, 1] alone; a part is not renormalised.
    """
    width = time_max - time_min
    time = time_min + width * (1 - noise.level)  # in (time_min, time_max]: w is infinite at 0
    masked = noise.uniforms < schedule.noise(time)[:, None]
    if scored is not None:
        masked = masked & scored.to(masked.device)
    return MaskDraw(masked, time, width * schedule.weight(time))


def draw_by_step(
    noise: WindowNoise, law: Callable[[int], DiscreteCounts], *, scored: Tensor | None = None
) -> MaskDraw:
    """The bound of T steps, by the joint law of (k, t) for as many scored tokens; the time is
    t / T."""
    num_scored = _num_scored(noise, scored)
    counts, t = draw_counts_and_steps(noise.level, num_scored, law)
    masked = choose_masked(noise.uniforms, counts, scored)
    weight = (num_scored / counts.clamp(min=1)).double()
    num_timesteps = law(1).num_timesteps
    return MaskDraw(masked, t.double() / num_timesteps, weight)


def draw_counts_and_steps(
    level: Tensor, num_scored: Tensor, law: Callable[[int], DiscreteCounts]
) -> tuple[Tensor, Tensor]:
    """(k, t), each (B,) int64, of windows with `num_scored` (B,) tokens; (0, 1) where that is 0."""
    counts, t = torch.zeros_like(num_scored), torch.ones_like(num_scored)
    for length in num_scored.unique().tolist():
        if length:
            chosen = num_scored == length
            counts[chosen], t[chosen] = law(length).draw(level[chosen])
    return counts, t


def draw_nats(token_loss: TokenLoss, targets: Tensor, draw: MaskDraw) -> Tensor:
    """Nats of each window, (B,)."""
    return draw.weighted(token_loss(targets, draw.masked, draw.time))


def _num_scored(noise: WindowNoise, scored: Tensor | None) -> Tensor:
    """(B,) int64 on the CPU."""
    if scored is None:
        batch, length = noise.uniforms.shape
        return torch.full((batch,), length, dtype=torch.int64, device="cpu")
    return scored.sum(1).cpu()


class DiscreteCounts:
    """The joint law of (k masked tokens, timestep t) that makes the T-step bound a plain mean.

    With keep_t = prod (1 - beta) the bound is sum_{t,k} w_t Binomial(k; L, 1 - keep_t) k
    E_{|M|=k} mean_{i in M} loss_i, w_t = (keep_{t-1} - keep_t) / (1 - keep_t). The weights in front
    of the mean sum to L exactly (when keep_T = 0), so drawing (k, t) in proportion to them leaves
    L * mean loss, with no weight left to add variance.

    Args: keep: (T + 1,) float64, falling from 1 to 0. length: L >= 1.
    """

    def __init__(self, keep: Tensor, length: int) -> None:
        self.num_timesteps = keep.numel() - 1
        k = torch.arange(1, length + 1, dtype=torch.float64, device="cpu")[:, None]  # (L, 1)
        noise = (1 - keep)[1:].cpu().double()  # (T,)
        drop = (keep[:-1] - keep[1:]).cpu().double()
        log_choose = math.lgamma(length) - torch.lgamma(k) - torch.lgamma(length - k + 1)
        # w_t Binomial(k; L, u) k / L = drop_t Binomial(k - 1; L - 1, u)
        log_weights = log_choose + torch.xlogy(k - 1, noise) + torch.xlogy(length - k, 1 - noise)
        weights = log_weights.exp() * drop  # (L, T)
        self.weights = weights / weights.sum()
        self.cumulative = self.weights.flatten().cumsum(0)

    def draw(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(k, t), each (B,) int64: the quantiles `level` (B,) of the law ordered by k, then t."""
        cell = torch.searchsorted(self.cumulative, level.double(), right=True)
        cell = cell.clamp(max=self.cumulative.numel() - 1)
        return 1 + cell // self.num_timesteps, 1 + cell % self.num_timesteps
