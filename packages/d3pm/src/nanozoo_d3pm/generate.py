"""Sampling: from noise to text, with any tokens held fixed.

B windows, S positions, V data tokens, N gathered rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.diffusion.unmasking import Predictor, ancestral, partial_text
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


@torch.no_grad()
def denoise(
    transition: Transition,
    predict: Predictor,
    tokens: Tensor,
    known: Tensor,
    *,
    num_steps: int,
    generator: torch.Generator,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Draws the unknown tokens: yields the windows (B, S) as they start, unless that is masked, and
    after every step that changed them.

    Known tokens stay as they are at every step. Under the absorbing process that is exact
    conditioning; under the others it is a heuristic, since the network was trained with all but the
    first token corrupted.

    Args: tokens, known: (B, S). num_steps: at most T; steps are skipped exactly.
    """
    grid = time_grid(transition.num_timesteps, num_steps)
    start = transition.start(_uniforms(tokens.numel(), generator).view(tokens.shape))
    x = torch.where(known, tokens, start.to(tokens.device))
    if isinstance(transition, Absorbing):
        yield from ancestral(
            predict,
            x,
            mask_id=transition.vocab_size,
            times=[float(t) for t in grid],
            noise=(-torch.expm1(transition.log_keep[grid])).tolist(),
            generator=generator,
            reuse=use_cache,
        )
        return
    free = (~known).flatten().nonzero()[:, 0]  # (N,)
    if transition.mask_id is None:
        yield x
    for t, s in pairwise(grid):
        x = _reverse(transition, predict, x, free, s, t, generator)
        yield x


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
    now = torch.full((x.shape[0],), t, device="cpu")
    log_probs = predict(x, now, free).log()[None]  # (1, N, V): rows share their time
    log_probs = log_probs.to(x.device, finest_dtype(x.device))
    times = torch.tensor([s], device="cpu"), torch.tensor([t], device="cpu")
    reverse = transition.log_reverse(log_probs, flat[free][None], *times)[0]
    drawn = draw_categorical(reverse.exp(), _uniforms(free.numel(), generator))
    return flat.index_put((free,), drawn).view_as(x)


def _uniforms(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")


def fill(
    model: D3PM, window: PartialText, settings: SamplingSettings, generator: torch.Generator
) -> Iterator[list[int | None]]:
    """`window` after every step, its holes being drawn given all else, before and after.

    Raises: ConfigError for more steps than the process has.
    """
    most = model.config.num_timesteps
    num_steps = settings.num_steps or model.config.sampling_timesteps
    if num_steps > most:
        raise ConfigError(f"num_steps={num_steps} is more than model_cfg.num_timesteps={most}")
    device = model.net.embedding.weight.device
    tokens = torch.tensor([[token or 0 for token in window]], device=device)
    known = torch.tensor([[token is not None for token in window]], device=device)
    if bool(known.all()):
        return
    for state in denoise(
        model.transition,
        predictor(model, settings),
        tokens,
        known,
        num_steps=num_steps,
        generator=generator,
        use_cache=settings.use_cache,
    ):
        yield partial_text(state[0], model.transition.mask_id)
