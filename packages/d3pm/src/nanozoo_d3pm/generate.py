"""Sampling: from noise to text, window by window, with any tokens held fixed.

B windows, S positions, V data tokens, N gathered rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.categorical import draw_categorical
from nanozoo_core.generate import probabilities
from nanozoo_d3pm.model import D3PM
from nanozoo_d3pm.transitions import Absorbing, Transition

Predictor = Callable[[Tensor, int, Tensor], Tensor]
"""(x_t (B, S), t, rows (N,) of the flattened window) -> p of x_0 at these rows, (N, V) float64."""


def predictor(model: D3PM, settings: SamplingSettings) -> Predictor:
    """The network's prediction, after temperature and cuts."""

    def predict(tokens: Tensor, t: int, rows: Tensor) -> Tensor:
        times = torch.full((tokens.shape[0],), t, device=tokens.device)
        features = model.features(tokens, times).flatten(0, 1)[rows]
        return probabilities(model.net.logits(features), settings)

    return predict


def time_grid(num_timesteps: int, num_steps: int) -> list[int]:
    """T = t_0 > t_1 > ... > 0, at most num_steps steps of nearly equal size."""
    num_steps = min(num_steps, num_timesteps)
    return [round(num_timesteps * (1 - n / num_steps)) for n in range(num_steps + 1)]


@torch.no_grad()
def denoise(
    transition: Transition,
    predict: Predictor,
    tokens: Tensor,
    known: Tensor,
    *,
    num_steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws the unknown tokens: (B, S).

    Known tokens stay as they are at every step. Under the absorbing process that is exact
    conditioning; under the others it is a heuristic, since the network was trained with all but the
    first token corrupted.

    Args: tokens, known: (B, S). num_steps: at most T; steps are skipped exactly.
    """
    grid = time_grid(transition.num_timesteps, num_steps)
    start = transition.start(_uniforms(tokens.numel(), generator).view(tokens.shape))
    x = torch.where(known, tokens, start.to(tokens.device))
    free = (~known).flatten().nonzero()[:, 0]  # (N,)
    for t, s in pairwise(grid):
        if isinstance(transition, Absorbing):
            x = _unmask(transition, predict, x, free, s, t, generator)
        else:
            x = _reverse(transition, predict, x, free, s, t, generator)
    return x


def _unmask(
    transition: Absorbing,
    predict: Predictor,
    x: Tensor,
    free: Tensor,
    s: int,
    t: int,
    generator: torch.Generator,
) -> Tensor:
    """Each mask is lifted with probability (keep_s - keep_t) / (1 - keep_t). Which ones is decided
    before the network runs, so a step that lifts none costs nothing."""
    flat = x.flatten()
    masked = free[flat[free] == transition.vocab_size]
    lifted = _uniforms(masked.numel(), generator) < transition.unmask_prob(s, t)
    rows = masked[lifted.to(masked.device)]
    if rows.numel() == 0:
        return x
    drawn = draw_categorical(predict(x, t, rows), _uniforms(rows.numel(), generator))
    return flat.index_put((rows,), drawn).view_as(x)


def _reverse(
    transition: Transition,
    predict: Predictor,
    x: Tensor,
    free: Tensor,
    s: int,
    t: int,
    generator: torch.Generator,
) -> Tensor:
    """x_s ~ p(x_s | x_t) at every free position, all states being possible."""
    flat = x.flatten()
    log_probs = predict(x, t, free).log()[None]  # (1, N, V): rows share their time
    times = torch.tensor([s]), torch.tensor([t])
    reverse = transition.log_reverse(log_probs, flat[free][None], *times)[0]
    drawn = draw_categorical(reverse.exp(), _uniforms(free.numel(), generator))
    return flat.index_put((free,), drawn).view_as(x)


def _uniforms(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def infill(
    model: D3PM,
    tokens: Sequence[int],
    holes: Sequence[bool],
    settings: SamplingSettings,
    generator: torch.Generator,
) -> list[int]:
    """`tokens` with those marked in `holes` drawn anew, given all the others, before and after.

    Raises: ValueError when the first token is a hole, lengths differ or exceed the window.
    """
    limit = model.net.seq_len
    if len(tokens) != len(holes) or not tokens:
        raise ValueError(f"{len(tokens)} tokens need as many marks, not {len(holes)}")
    if holes[0]:
        raise ValueError("the first token is context and cannot be a hole; start with a separator")
    if len(tokens) > limit:
        raise ValueError(f"{len(tokens)} tokens do not fit into a window of {limit}")
    device = model.net.embedding.weight.device
    window = torch.tensor([list(tokens)], device=device)
    known = ~torch.tensor([list(holes)], device=device)
    filled = denoise(
        model.transition,
        predictor(model, settings),
        window,
        known,
        num_steps=settings.num_steps or model.config.sampling_timesteps,
        generator=generator,
    )
    return filled[0].tolist()


def continue_text(
    model: D3PM, prompt: Sequence[int], settings: SamplingSettings, generator: torch.Generator
) -> Iterator[list[int]]:
    """Denoises what is left of the prompt's window at once; beyond it, slides on by the config's
    chunk, the rest of the window being clean context. Yields each block when it is final.

    Raises: ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token, such as the separator")
    limit = model.net.seq_len
    text = list(prompt)
    left = settings.max_tokens
    while left > 0:
        context = text[-(limit - model.config.chunk_size) :]
        num_new = min(limit - len(context), left)
        holes = [False] * len(context) + [True] * num_new
        window = context + [0] * num_new
        block = infill(model, window, holes, settings, generator)[len(context) :]
        yield block
        text += block
        left -= num_new
