"""Samplers of masked diffusion: from windows with masks to windows without.

All of them yield the windows after every step that changed one. A known token is never touched, so
whatever is given from the start, wherever it stands, is conditioned on exactly. Which masks are
lifted is decided before the network runs, and it predicts the rows of those alone. `remasking`
alone takes back what it drew.

B windows, S positions, V data tokens, N gathered rows of the flattened windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.diffusion.schedules import Schedule
from nanozoo_core.ops.categorical import draw_categorical

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(windows (B, S) with masks, time (B,), rows (N,)) -> p of the clean tokens there, (N, V) float64.

`time` is what the sampler was given: whatever scale that has.
"""


@dataclass(frozen=True)
class Holes:
    """Windows that a sampler is to complete."""

    x: Tensor  # (B, S), with the mask at the holes, or 0 where there is no mask
    known: Tensor  # (B, S) bool, False at the holes
    settings: SamplingSettings
    generator: torch.Generator


def ancestral(
    predict: Predictor,
    x: Tensor,
    *,
    mask_id: int,
    times: Sequence[float],
    noise: Sequence[float],
    generator: torch.Generator,
    reuse: bool = True,
) -> Iterator[Tensor]:
    """Walks back in time; between times t and s each mask is lifted with probability
    (alpha_s - alpha_t) / (1 - alpha_t), independently.

    Args:
        x: (B, S). times: falling, as the network reads them. noise: 1 - alpha at those times, from
            1 to 0, so that no mask is left.
        reuse: skip the network in steps that lift no mask; without it, as a check, it runs in all.
    Reference: arXiv 2406.07524, the reverse posterior under SUBS.
    """
    for (t, noise_t), (_, noise_s) in pairwise(zip(times, noise, strict=True)):
        masked = masked_rows(x, mask_id)
        lifted = uniforms(masked.numel(), generator) < (noise_t - noise_s) / noise_t
        rows = masked[lifted.to(x.device)]
        if reuse and rows.numel() == 0:
            continue
        time = torch.full((x.shape[0],), t, dtype=torch.float64, device="cpu")
        probs = predict(x, time, rows)
        if rows.numel() == 0:
            continue
        x = place(x, rows, draw_categorical(probs, uniforms(rows.numel(), generator)))
        yield x


def remasking(
    predict: Predictor,
    x: Tensor,
    *,
    mask_id: int,
    times: Sequence[float],
    noise: Sequence[float],
    cap: float,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """As `ancestral`, but a step from t to s also hides again each token that it drew before, with
    probability sigma = min(cap, (1 - alpha_s) / alpha_t), and lifts each mask with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). At every time as many tokens are masked as
    without it, and a token drawn beside one that it does not fit has another chance.

    Args: x: (B, S), its masks being what is to be drawn. cap: in (0, 1], the share that is hidden
        again in a step; times and noise as for `ancestral`.
    Reference: arXiv 2503.00307, eq. 5 and the schedule with a cap.
    """
    is_hole = x == mask_id
    for (t, noise_t), (_, noise_s) in pairwise(zip(times, noise, strict=True)):
        keep_t = 1 - noise_t
        sigma = min(cap, noise_s / keep_t) if keep_t > 0 else 0.0
        share = (noise_t - noise_s + sigma * keep_t) / noise_t  # exactly 1 in the last step
        masked = masked_rows(x, mask_id)
        rows = masked[(uniforms(masked.numel(), generator) < share).to(x.device)]
        drawn = (is_hole & (x != mask_id)).flatten().nonzero()[:, 0]
        hidden = drawn[(uniforms(drawn.numel(), generator) < sigma).to(x.device)]
        before = x
        if rows.numel():
            time = torch.full((x.shape[0],), t, dtype=torch.float64, device="cpu")
            probs = predict(x, time, rows)
            x = place(x, rows, draw_categorical(probs, uniforms(rows.numel(), generator)))
        if hidden.numel():
            x = place(x, hidden, torch.full_like(hidden, mask_id))
        if x is not before:
            yield x


def first_hitting(
    predict: Predictor,
    x: Tensor,
    *,
    mask_id: int,
    schedule: Schedule,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Lifts one uniformly random mask of each window at a time: the law of `ancestral` in the limit
    of infinitely many steps, in as many as there are masks.

    The noise level at which the next of n masks falls is the largest of n uniforms, times the
    present one; the network is asked at that time.
    Reference: arXiv 2409.02908, the first-hitting sampler.
    """
    batch = torch.arange(x.shape[0], device=x.device)
    level = torch.ones(x.shape[0], dtype=torch.float64, device="cpu")
    left = (x == mask_id).sum(1).cpu()  # (B,)
    while bool((left > 0).any()):
        drawn = uniforms(3 * x.shape[0], generator).view(3, -1)
        level = level * drawn[0] ** (1 / left.clamp(min=1))
        # The number of the chosen mask among those of its window; a product may round up to `left`.
        chosen = (drawn[1] * left).long().minimum(left - 1).to(x.device)
        ranks = (x == mask_id).cumsum(1)
        places = (ranks == 1 + chosen[:, None]).int().argmax(1)  # (B,)
        active = left > 0
        rows = (batch * x.shape[1] + places)[active.to(x.device)]
        probs = predict(x, schedule.time_of_noise(level), rows)
        x = place(x, rows, draw_categorical(probs, drawn[2][active]))
        left = left - active.long()
        yield x


def most_confident(
    predict: Predictor,
    x: Tensor,
    *,
    mask_id: int,
    times: Sequence[float],
    noise: Sequence[float],
    generator: torch.Generator,
    sharpen: Callable[[Tensor], Tensor] = lambda probs: probs,
) -> Iterator[Tensor]:
    """Draws all masks in every step and keeps the draws of highest probability, as many as the
    schedule wants known by then. A heuristic: its law is not the model's, whatever the steps.

    Args: sharpen: makes of p (N, V) what is drawn from, by temperature and cuts; how sure a draw is
        p itself says, which a greedy choice would set to one everywhere.
    Reference: arXiv 2202.04200, iterative decoding.
    """
    total = (x == mask_id).sum(1)  # (B,)
    for (t, _), (_, noise_s) in pairwise(zip(times, noise, strict=True)):
        masked = x == mask_id
        num_lifted = masked.sum(1) - (total * noise_s).long()  # (B,)
        if not bool((num_lifted > 0).any()):
            continue
        rows = masked_rows(x, mask_id)
        time = torch.full((x.shape[0],), t, dtype=torch.float64, device="cpu")
        probs = predict(x, time, rows)  # (N, V)
        drawn = draw_categorical(sharpen(probs), uniforms(rows.numel(), generator))
        confidence = torch.full(x.shape, -1.0, dtype=probs.dtype, device=probs.device).flatten()
        confidence[rows.to(probs.device)] = probs.gather(1, drawn[:, None])[:, 0]
        ranks = confidence.view(x.shape).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = (ranks.to(x.device) < num_lifted[:, None]).flatten()[rows]
        x = place(x, rows[kept], drawn.to(x.device)[kept])
        yield x


def partial_text(window: Tensor, mask_id: int | None) -> list[int | None]:
    """One window (S,) as the contract shows it: None for a mask."""
    return [None if token == mask_id else token for token in window.tolist()]


def masked_window(text: PartialText, mask_id: int, device: torch.device) -> Tensor:
    """The reverse of `partial_text`, (1, S)."""
    ids = [mask_id if token is None else token for token in text]
    return torch.tensor([ids], device=device)


def masked_rows(x: Tensor, mask_id: int) -> Tensor:
    """Where the masks of windows (B, S) stand when they are flattened, (N,)."""
    return (x.flatten() == mask_id).nonzero()[:, 0]


def place(x: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Windows (B, S) with `tokens` (N,), on whatever device, at the `rows` (N,) of their flattened
    form."""
    return x.flatten().index_put((rows,), tokens.to(x.device)).view_as(x)


def uniforms(count: int, generator: torch.Generator) -> Tensor:
    """(count,) float64 in [0, 1) on the CPU, whatever the device."""
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
