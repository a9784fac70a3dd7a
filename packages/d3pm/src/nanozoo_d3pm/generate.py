"""Sampling: from noise to text, with any tokens held fixed.

B windows, S positions, V data tokens, N gathered rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.unmasking import Holes, Predictor, ancestral, place, uniforms
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.precision import finest_dtype
from nanozoo_core.ops.categorical import draw_categorical
from nanozoo_core.ops.sampling import probabilities
from nanozoo_d3pm.model import D3PM
from nanozoo_d3pm.transitions import Absorbing, Transition


def predictor(model: D3PM, settings: SamplingSettings) -> Predictor:
    """The network's prediction, after temperature and cuts; the time is t = 1 .. T."""

    def predict(tokens: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        features = model.features(tokens, t).flatten(0, 1)[rows]
        return probabilities(model.net.logits(features), settings)

    return predict


def time_grid(num_timesteps: int, num_steps: int) -> list[int]:
    """T = t_0 > t_1 > ... > 0, at most num_steps steps of nearly equal size."""
    num_steps = min(num_steps, num_timesteps)
    return [round(num_timesteps * (1 - n / num_steps)) for n in range(num_steps + 1)]


def denoise(
    transition: Transition, predict: Predictor, holes: Holes, *, num_steps: int
) -> Iterator[Tensor]:
    """Draws the unknown tokens: yields the windows (B, S) as they start, unless that is masked, and
    after every step that changed them.

    Known tokens stay as they are at every step. Under the absorbing process that is exact
    conditioning; under the others it is a heuristic, since the network was trained with all but the
    first token corrupted.

    Args: num_steps: at most T; steps are skipped exactly.
    """
    grid = time_grid(transition.num_timesteps, num_steps)
    known, generator = holes.known, holes.generator
    start = transition.start(uniforms(known.numel(), generator).view(known.shape))
    x = torch.where(known, holes.x, start.to(known.device))
    if isinstance(transition, Absorbing):
        yield from ancestral(
            predict,
            x,
            mask_id=transition.vocab_size,
            times=[float(t) for t in grid],
            noise=(-torch.expm1(transition.log_keep[grid])).tolist(),
            generator=generator,
            reuse=holes.settings.use_cache,
        )
        return
    free = (~known).flatten().nonzero()[:, 0]  # (N,)
    if transition.mask_id is None:
        yield x
    for t, s in pairwise(grid):
        own = x.flatten()[free]
        now = torch.full((x.shape[0],), t, device="cpu")
        log_probs = predict(x, now, free).log()[None]  # (1, N, V): rows share their time
        log_probs = log_probs.to(x.device, finest_dtype(x.device))
        times = torch.tensor([s], device="cpu"), torch.tensor([t], device="cpu")
        reverse = transition.log_reverse(log_probs, own[None], *times)[0].exp()  # (N, K)
        x = place(x, free, draw_categorical(reverse, uniforms(free.numel(), generator)))
        yield x


def sample(model: D3PM, holes: Holes) -> Iterator[Tensor]:
    """The windows (B, S) after every step, their holes being drawn given all else, before and
    after.

    Raises: ConfigError for more steps than the process has.
    """
    most = model.config.num_timesteps
    num_steps = holes.settings.num_steps or model.config.sampling_timesteps
    if num_steps > most:
        raise ConfigError(f"num_steps={num_steps} is more than model_cfg.num_timesteps={most}")
    return denoise(model.transition, predictor(model, holes.settings), holes, num_steps=num_steps)
