"""Sampling: from noise to text, with any tokens held fixed.

A step first decides whether a token jumps, by the scores alone; temperature and cuts act on where
it jumps to. All samplers yield the windows after every step that changed them.

B windows, S positions, V data tokens, N rows of the flattened windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from nanozoo_core.diffusion.schedules import Schedule
from nanozoo_core.diffusion.unmasking import Holes, masked_rows, place, uniforms
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.ops.categorical import draw_categorical
from nanozoo_core.ops.sampling import probabilities
from nanozoo_sedd import uniform

LAST_TIME = 1e-5  # where the last ordinary step ends; one more goes on to x_0

Predictor = Literal["analytic", "euler"]

LogScores = Callable[[Tensor, float, Tensor], Tensor]
"""(windows (B, S), sigma, rows (N,)) -> (N, V): log u at masks, or log s of the uniform process,
which is 0 at a token's own value. sigma may be infinite, of masks alone."""


def time_grid(num_steps: int) -> list[float]:
    """1 > ... > LAST_TIME in num_steps even steps, then 0."""
    width = (1 - LAST_TIME) / num_steps
    return [*(1 - width * n for n in range(num_steps)), LAST_TIME, 0.0]


# -- masks ----------------------------------------------------------------------------------------


def unmask(
    log_measure: LogScores,
    holes: Holes,
    *,
    mask_id: int,
    num_steps: int,
    schedule: Schedule,
    predictor: Predictor,
    reuse: bool = False,
) -> Iterator[Tensor]:
    """Lifts masks step by step, each to y with probability c u_y, c being (alpha_s - alpha_t) /
    (1 - alpha_t), or its first order for euler; the last step lifts all that are left.

    What is known from the start, wherever it stands, is conditioned on exactly.

    Args: reuse: log_measure ignores sigma, so it need not be asked again after a step that lifted
        nothing.
    """
    x, log_u = holes.x, None
    for t, s in pairwise(time_grid(num_steps)):
        rows = masked_rows(x, mask_id)  # (N,)
        if rows.numel() == 0:
            return
        if log_u is None or not reuse:
            log_u = log_measure(x, _at(schedule.sigma, t), rows)  # (N, V)
        if s == 0:
            lifted = torch.ones(rows.numel(), dtype=torch.bool)
        else:
            share = lift_share(schedule, t, s, predictor)
            lift_prob = share * in_float64(log_u).logsumexp(-1).exp().cpu()  # above 1 means surely
            lifted = uniforms(rows.numel(), holes.generator) < lift_prob
        if not bool(lifted.any()):
            continue
        chosen = lifted.to(x.device)
        x = place(x, rows[chosen], _draw(log_u[chosen], holes))
        log_u = None
        yield x


def lift_share(schedule: Schedule, t: float, s: float, predictor: Predictor) -> float:
    """How likely a mask of mass 1 is lifted between t and s.

    For analytic that is sum_y (e^D - 1) s_y, D = sigma_t - sigma_s, with the scores s_y = alpha_t /
    (1 - alpha_t) u_y put in, so that nothing is infinite where alpha is 0.
    """
    if predictor == "euler":
        return _at(schedule.weight, t) * (t - s)
    return 1 - _at(schedule.noise, s) / _at(schedule.noise, t)


def first_hitting(log_measure: LogScores, holes: Holes, *, mask_id: int) -> Iterator[Tensor]:
    """Lifts one mask of each window at a time: the law of infinitely many steps, if the measure
    ignores sigma.

    A mask is lifted at the rate of its mass sum_y u_y times a factor that all masks share, so the
    next one is drawn in proportion to the masses: evenly where they are normalised.
    Reference: arXiv 2409.02908, the first-hitting sampler, whose masses are all 1.
    """
    x = holes.x
    while True:
        rows = masked_rows(x, mask_id)  # (N,)
        if rows.numel() == 0:
            return
        log_u = log_measure(x, float("inf"), rows)  # (N, V)
        mass = in_float64(log_u).logsumexp(-1).exp()  # (N,)
        masses = torch.zeros(x.numel(), dtype=mass.dtype, device=mass.device)
        masses = masses.index_put((rows.to(mass.device),), mass).view_as(x)
        windows = (x == mask_id).any(1).nonzero()[:, 0]
        of_windows = masses[windows.to(mass.device)]
        places = draw_categorical(of_windows, uniforms(len(windows), holes.generator))
        chosen = windows * x.shape[1] + places.to(x.device)
        x = place(x, chosen, _draw(log_u[torch.searchsorted(rows, chosen)], holes))
        yield x


# -- any token ------------------------------------------------------------------------------------


def jump(
    log_scores: LogScores,
    holes: Holes,
    *,
    vocab_size: int,
    num_steps: int,
    schedule: Schedule,
    predictor: Predictor,
) -> Iterator[Tensor]:
    """From uniform noise at the unknown tokens, step by step, each token on its own.

    Known tokens stay. That is a heuristic: in training every token but the first was corrupted, so
    the network reads them as tokens that may be wrong.
    """
    free = (~holes.known).flatten().nonzero()[:, 0]  # (N,)
    noise = (uniforms(free.numel(), holes.generator) * vocab_size).long().to(free.device)
    x = place(holes.x, free, noise)
    yield x
    for t, s in pairwise(time_grid(num_steps)):
        own = x.flatten()[free]
        sigma = _at(schedule.sigma, t)
        scores = log_scores(x, sigma, free).exp()  # (N, V)
        if s == 0:
            weights = uniform.decoder_probs(scores, own, sigma)
        elif predictor == "euler":
            weights = uniform.euler_weights(scores, own, _at(schedule.sigma_rate, t) * (t - s))
        else:
            weights = uniform.tweedie_weights(scores, own, sigma - _at(schedule.sigma, s))
        weights = in_float64(weights)
        jumps = weights.scatter(-1, own[:, None].to(weights.device), 0.0)
        jump_prob = jumps.sum(-1) / weights.sum(-1)
        moved = uniforms(free.numel(), holes.generator).to(jump_prob.device) < jump_prob
        if bool(moved.any()):
            x = place(x, free[moved.to(x.device)], _draw(jumps[moved].log(), holes))
            yield x


def _at(function: Callable[[Tensor], Tensor], t: float) -> float:
    """A schedule's function in float64."""
    return float(function(torch.tensor(t, dtype=torch.float64, device="cpu")))


def _draw(logits: Tensor, holes: Holes) -> Tensor:
    """One token per row of logits (N, V), after temperature and cuts, in float64."""
    probs = probabilities(logits, holes.settings)
    return draw_categorical(probs, uniforms(len(logits), holes.generator))
