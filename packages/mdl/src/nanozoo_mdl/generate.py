"""Sampling: from windows with holes to texts.

B windows, S positions, N gathered rows, V data tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.unmasking import (
    Holes,
    Predictor,
    ancestral,
    first_hitting,
    most_confident,
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


def unmask(model: MDLM, holes: Holes) -> Iterator[Tensor]:
    """The windows (B, S) after every step, their holes being drawn given all else, before and
    after: exact conditioning, whatever the pattern.

    Raises: ConfigError for a number of steps that the sampler does not take.
    """
    config, settings, generator = model.config, holes.settings, holes.generator
    predict = predictor(model, settings)
    if config.sampler == "first_hitting":
        if settings.num_steps is not None:
            raise ConfigError(
                f"num_steps={settings.num_steps} has no effect with model_cfg.sampler="
                "first_hitting, which draws one token in each step; use ancestral_cache"
            )
        return first_hitting(
            predict, holes.x, mask_id=model.mask_id, schedule=model.schedule, generator=generator
        )
    num_steps = settings.num_steps or config.num_sampling_steps
    times = 1 - torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps
    noise = model.schedule.noise(times)
    noise[0] = 1.0  # a cosine of pi / 2 is not quite 0
    grid = {"times": times.tolist(), "noise": noise.tolist()}
    if config.sampler == "confidence":
        return most_confident(
            predictor(model, SamplingSettings()),
            holes.x,
            mask_id=model.mask_id,
            generator=generator,
            sharpen=lambda probs: probabilities(probs.log(), settings),
            **grid,
        )
    return ancestral(
        predict,
        holes.x,
        mask_id=model.mask_id,
        generator=generator,
        reuse=settings.use_cache and config.sampler == "ancestral_cache",
        **grid,
    )
