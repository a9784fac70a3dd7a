"""Sampling: from a window with holes to a text.

B windows, S positions, N gathered rows, V data tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.diffusion.unmasking import (
    Predictor,
    ancestral,
    first_hitting,
    masked_window,
    most_confident,
    partial_text,
)
from nanozoo_core.errors import ConfigError
from nanozoo_core.ops.sampling import probabilities
from nanozoo_mdl.model import MDLM


def predictor(model: MDLM, settings: SamplingSettings) -> Predictor:
    """The network's prediction, after temperature and cuts; the time runs over [0, 1]."""

    def predict(tokens: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        seen = model.time_input(time).float().to(tokens.device)
        features = model.net.features(tokens, seen).flatten(0, 1)[rows]
        return probabilities(model.net.logits(features), settings)

    return predict


@torch.no_grad()
def fill(
    model: MDLM, window: PartialText, settings: SamplingSettings, generator: torch.Generator
) -> Iterator[list[int | None]]:
    """`window` after every step, its holes being drawn given all else, before and after: exact
    conditioning, whatever the pattern.

    Raises: ConfigError for a number of steps that the sampler does not take.
    """
    config = model.config
    x = masked_window(window, model.mask_id, model.net.embedding.weight.device)
    predict = predictor(model, settings)
    if config.sampler == "first_hitting":
        if settings.num_steps is not None:
            raise ConfigError(
                f"num_steps={settings.num_steps} has no effect with model_cfg.sampler="
                "first_hitting, which draws one token in each step; use ancestral_cache"
            )
        states = first_hitting(
            predict, x, mask_id=model.mask_id, schedule=model.schedule, generator=generator
        )
    else:
        num_steps = settings.num_steps or config.num_sampling_steps
        times = 1 - torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps
        noise = model.schedule.noise(times)
        noise[0] = 1.0  # a cosine of pi / 2 is not quite 0
        grid = {"times": times.tolist(), "noise": noise.tolist()}
        if config.sampler == "confidence":
            states = most_confident(
                predictor(model, SamplingSettings()),
                x,
                mask_id=model.mask_id,
                generator=generator,
                sharpen=lambda probs: probabilities(probs.log(), settings),
                **grid,
            )
        else:
            states = ancestral(
                predict,
                x,
                mask_id=model.mask_id,
                generator=generator,
                reuse=settings.use_cache and config.sampler == "ancestral_cache",
                **grid,
            )
    for state in states:
        yield partial_text(state[0], model.mask_id)
