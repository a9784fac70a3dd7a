"""The uniform process: a token is redrawn among all V with probability 1 - e^{-sigma}.

Its score entropy, the three terms of its bound, and the decoder that undoes some noise at once.
Everything is a function of the scores s_y = p_t(x with y at a position) / p_t(x), so that a table
can stand in for the network. The score of a token's own value is 1 and appears in no loss.

B windows, L tokens, N rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nanozoo_core.diffusion.schedules import Linear, Schedule
from nanozoo_core.machine.precision import finest_dtype

# Share of the decoder that is uniform: a token that a wrong score makes impossible then costs
# log(V / 1e-6) nats, and not infinitely many.
DECODER_FLOOR = 1e-6


class ScoreSums(NamedTuple):
    """What the loss needs of the scores at each token, sums being over y != x_t."""

    mass: Tensor  # sum s_y
    total: Tensor  # sum log s_y
    log_true: Tensor  # log s at x_0; 0 where x_0 = x_t


SumsAt = Callable[[Tensor, Tensor, Tensor], ScoreSums]
"""(x_t (B, L), x_0 (B, L), sigma (B,)) -> ScoreSums of (B, L)."""

DecoderAt = Callable[[Tensor, Tensor, float], Tensor]
"""(x_t (B, L), x_0 (B, L), sigma) -> log p(x_0 | x_t) (B, L)."""


# -- the process ----------------------------------------------------------------------------------


def flow(values: Tensor, sigma: float) -> Tensor:
    """v e^{sigma R} (..., V), with R = 11^T / V - I; a negative sigma runs it backwards."""
    return math.exp(-sigma) * values - math.expm1(-sigma) * values.mean(-1, keepdim=True)


def corrupt(tokens: Tensor, sigma: Tensor, uniforms: Tensor, vocab_size: int) -> Tensor:
    """x_t given x_0 = tokens (B, L), from one float64 uniform per token; a redraw may return x_0.

    Args: sigma: (B,) float64. uniforms: (B, L), on the CPU like sigma.
    """
    noise = -torch.expm1(-sigma)[:, None]
    redrawn = (uniforms / noise * vocab_size).long().clamp(max=vocab_size - 1)
    moved = (uniforms < noise).to(tokens.device)
    return torch.where(moved, redrawn.to(tokens.device), tokens)


def log_ratio(sigma: Tensor, vocab_size: int) -> Tensor:
    """log of rho = p(y | x_0) / p(x_0 | x_0), y != x_0: (1 - alpha) / (V alpha + 1 - alpha)."""
    noise = -torch.expm1(-sigma)
    return noise.log() - (vocab_size * torch.exp(-sigma) + noise).log()


# -- the loss -------------------------------------------------------------------------------------


def score_entropy(sums: ScoreSums, same: Tensor, sigma: Tensor, vocab_size: int) -> Tensor:
    """sum_{y != x_t} (s_y - r_y log s_y + K(r_y)) / V of each token, (B, L), K(r) = r(log r - 1).

    1/V is the rate of the jump y -> x_t, which the reverse process undoes. The ratios r_y =
    p(y | x_0) / p(x_t | x_0) are rho where x_t = x_0; else 1/rho at x_0 and 1 elsewhere.

    Args: same: whether x_t = x_0, (B, L). sigma: (B,) float64 on the CPU.
    Reference: arXiv 2310.16834, theorems 3.4 and 3.6.
    """
    # Terms of size V nearly cancel, so they are float64 where that exists.
    device = same.device
    dtype = finest_dtype(device)
    mass, total, log_true = (part.to(dtype) for part in sums)
    log_rho = log_ratio(sigma, vocab_size)[:, None]
    rho = log_rho.exp()
    constant_same = (vocab_size - 1) * rho * (log_rho - 1)
    constant_moved = -(log_rho + 1) / rho - (vocab_size - 2)
    rho, inverse, constant_same, constant_moved = (
        part.to(device, dtype) for part in (rho, 1 / rho, constant_same, constant_moved)
    )
    stayed = mass - rho * total + constant_same
    moved = mass - total + (1 - inverse) * log_true + constant_moved
    return torch.where(same, stayed, moved) / vocab_size


def mixture_sums(
    log_own: Tensor, log_true: Tensor, sum_log1p: Tensor, spread: Tensor, vocab_size: int
) -> ScoreSums:
    """Sums of the scores of a denoiser, s_y = (1 + h p_y) / (1 + h p_own).

    With the posterior P of x_0, proportional to p_k p(x_t | k), that is the mean of r_y under P:
    always the score of some distribution, and of the right size at any sigma.

    Args: log_own, log_true: log p, (B, L). sum_log1p: sum over all y of log(1 + h p_y). spread: h =
        V / (e^sigma - 1), (B, 1).
    """
    dtype = finest_dtype(log_own.device)
    log_own, log_true, sum_log1p, h = (
        part.to(log_own.device, dtype) for part in (log_own, log_true, sum_log1p, spread)
    )
    log_floor = torch.log1p(h * log_own.exp())
    return ScoreSums(
        mass=(vocab_size + h) / log_floor.exp() - 1,
        total=sum_log1p - vocab_size * log_floor,
        log_true=torch.log1p(h * log_true.exp()) - log_floor,
    )


# -- the bound ------------------------------------------------------------------------------------


def spread_times(level: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Times in (0, 1] and weights, each (B,), that make means over `level` in [0, 1) integrals.

    A linear alpha starts from sigma = 0, where a jump has probability sigma and costs 1 / sigma: at
    even times the estimate would have an infinite variance. Times t = v^2 (3 - 2v), dense at both
    ends, mend that. The geometric schedule is even in log sigma and needs nothing.
    """
    v = 1 - level
    if isinstance(schedule, Linear):
        return v**2 * (3 - 2 * v), 6 * v * (1 - v)
    return v, torch.ones_like(v)


def integral(
    sums_at: SumsAt,
    tokens: Tensor,
    time: Tensor,
    uniforms: Tensor,
    *,
    schedule: Schedule,
    vocab_size: int,
    scored: Tensor | None = None,
) -> Tensor:
    """d sigma/dt times the score entropy of each window at its time (B,), one draw of x_t: (B,).

    Its mean over times in [0, 1] is the first term of the bound. Tokens that are not scored stay.
    """
    sigma = schedule.sigma(time)
    corrupted = corrupt(tokens, sigma, uniforms, vocab_size)
    if scored is not None:
        corrupted = torch.where(scored, corrupted, tokens)
    sums = sums_at(corrupted, tokens, sigma)
    losses = score_entropy(sums, corrupted == tokens, sigma, vocab_size)
    if scored is not None:
        losses = losses * scored
    total = losses.sum(1)
    return total * schedule.sigma_rate(time).to(total)


def prior_kl(schedule: Schedule, vocab_size: int) -> float:
    """KL of x_1 given x_0 from the uniform distribution, in nats per token."""
    last = schedule.sigma(torch.ones((), dtype=torch.float64, device="cpu"))
    other = -torch.expm1(-last) / vocab_size
    same = torch.exp(-last) + other
    negative_entropy = torch.xlogy(same, same) + (vocab_size - 1) * torch.xlogy(other, other)
    return max(0.0, float(math.log(vocab_size) + negative_entropy))


def least_sigma(schedule: Schedule) -> float:
    """sigma(0): the noise that the decoder undoes. 0 means that x_0 is reached without one."""
    return float(schedule.sigma(torch.zeros((), dtype=torch.float64, device="cpu")))


def reconstruction(
    decoder_at: DecoderAt,
    tokens: Tensor,
    uniforms: Tensor,
    *,
    schedule: Schedule,
    vocab_size: int,
    scored: Tensor | None = None,
) -> Tensor:
    """-log p(x_0 | x_t) of each window at t = 0, one draw of x_t: (B,)."""
    sigma = least_sigma(schedule)
    if sigma == 0:
        return torch.zeros(tokens.shape[0], device=tokens.device)
    noise = torch.full((tokens.shape[0],), sigma, dtype=torch.float64, device="cpu")
    corrupted = corrupt(tokens, noise, uniforms, vocab_size)
    if scored is not None:
        corrupted = torch.where(scored, corrupted, tokens)
    nats = -decoder_at(corrupted, tokens, sigma)
    return (nats if scored is None else nats * scored).sum(1)


# -- going back -----------------------------------------------------------------------------------


def tweedie_weights(scores: Tensor, own: Tensor, change: float) -> Tensor:
    """Weights (N, V) of x_s given x_t = own, with sigma_t - sigma_s = change.

    [e^{-change R} s]_y times the probability of y -> x_t: exact for one token and exact scores.
    Wrong scores can make weights negative, which become 0.

    Args: scores: (N, V), 1 at own (N,).
    Reference: arXiv 2310.16834, theorem 4.2.
    """
    vocab_size = scores.shape[-1]
    weights = flow(scores, -change).clamp(min=0)
    arrive = -math.expm1(-change) / vocab_size
    stay = math.exp(-change) + arrive
    at_own = weights.gather(-1, own[..., None]) * stay
    return (weights * arrive).scatter(-1, own[..., None], at_own)


def decoder_probs(scores: Tensor, own: Tensor, sigma: float) -> Tensor:
    """p(x_0 | x_t) (N, V) from the scores at noise sigma; no token is impossible."""
    weights = tweedie_weights(scores, own, sigma)
    share = (1 - DECODER_FLOOR) / weights.sum(-1, keepdim=True)
    return weights * share + DECODER_FLOOR / weights.shape[-1]


def euler_weights(scores: Tensor, own: Tensor, expected_jumps: float) -> Tensor:
    """Weights (N, V) after a step of `expected_jumps` = sigma'(t) (t - s): jumps at their rates
    times the step, together at most 1, and the rest stays."""
    jumps = scores.scatter(-1, own[..., None], 0.0) * (expected_jumps / scores.shape[-1])
    total = jumps.sum(-1, keepdim=True)
    jumps = jumps / total.clamp(min=1)
    return jumps.scatter(-1, own[..., None], (1 - total).clamp(min=0))
