"""Masks: a corrupted token becomes the mask, and only masks have scores to learn.

B windows, L scored tokens, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nanozoo_core.contract import Batch, Draw, Inspection, Step, Vocabulary
from nanozoo_core.diffusion.bounds import (
    TokenLoss,
    draw_by_count,
    draw_by_time,
    draw_nats,
    network_draw_sum,
    network_loss,
)
from nanozoo_core.diffusion.levels import INSPECTION_SEED
from nanozoo_core.diffusion.sampling import WindowNoise, draw_window_noise
from nanozoo_core.diffusion.schedules import Linear
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import (
    cpu_scored,
    inspect_levels,
    level_picture,
    with_masked_nats,
)
from nanozoo_core.errors import ConfigError
from nanozoo_sedd.generate import first_hitting, unmask
from nanozoo_sedd.model import SEDD

BY_NOISE = Linear()  # the schedule whose time is the noise 1 - alpha itself


class MaskGraph:
    """Training, score and sampling with masks."""

    def __init__(self, model: SEDD) -> None:
        self.model = model
        self.mask_id = model.vocab_size

    def training_sum(self, batch: Batch, step: Step) -> Tensor:
        """Score entropy summed over the windows, by the number of masks or by the time."""
        model, window = self.model, batch.window
        config = model.config
        noise = draw_window_noise(step, batch, stratified=config.stratified)
        if config.draws_counts:
            noise = model.training_noise.of_levels(noise)
            draw = draw_by_count(noise, schedule=BY_NOISE, scored=cpu_scored(batch))
            sigma = BY_NOISE.sigma
        else:
            first, last = model.training_noise.of_times(model.schedule)
            draw = draw_by_time(
                noise,
                schedule=model.schedule,
                time_min=max(config.t_min, first),
                time_max=last,
                scored=cpu_scored(batch),
            )
            sigma = model.schedule.sigma
        return network_draw_sum(
            model.net,
            window[:, :1],
            self.mask_id,
            window[:, 1:],
            draw,
            lambda time: model.told(sigma(time)),
            normalised=False,
        )

    def nats(self, batch: Batch, draw: Draw) -> Tensor:
        """One draw of the bound per window, (B,)."""
        return self._bound(batch, draw_window_noise(draw, batch))

    def _bound(self, batch: Batch, noise: WindowNoise, *, normalised: bool = False) -> Tensor:
        """All noise from none to everything is covered, so neither a prior nor a reconstruction
        term is left, whatever the training schedule.

        The score entropy of a masked token over its weight -alpha' / (1 - alpha) is, in terms of
        the prediction u of x_0, sum_y u_y - 1 - log u_{x_0}: a cross-entropy if u sums to one.
        Tokens that are not masked have none.

        Reference: arXiv 2310.16834, theorem 3.4 with the ratios of the absorbing process.
        """
        draw = draw_by_count(noise, schedule=BY_NOISE, scored=cpu_scored(batch))
        token_loss = self._token_loss(batch, normalised=normalised)
        return draw_nats(token_loss, batch.window[:, 1:], draw)

    def _token_loss(self, batch: Batch, *, normalised: bool = False) -> TokenLoss:
        """At times that are the noise 1 - alpha."""
        model = self.model
        return network_loss(
            model.net,
            batch.window[:, :1],
            self.mask_id,
            lambda time: model.told(BY_NOISE.sigma(time)),
            normalised=normalised,
        )

    def inspect(self, batches: Sequence[Batch], vocabulary: Vocabulary) -> Inspection | None:
        """The bound of the model and of the normalised one, on the same noise, and the score
        entropy of a masked token by how many are."""
        names = ("bound", "bound_normalised")

        def look(batch: Batch) -> tuple[Tensor, Tensor]:
            noise = draw_window_noise(Draw(INSPECTION_SEED), batch)
            both = [self._bound(batch, noise, normalised=choice) for choice in (False, True)]
            return noise.level, torch.stack(both, dim=1)

        picture = level_picture("The bound by masked share", "masked share", names)
        found = inspect_levels(batches, vocabulary, names, look, picture)
        return with_masked_nats(found, batches, self._token_loss, BY_NOISE.time_of_noise)

    def steps(self, holes: Holes) -> Iterator[Tensor]:
        """The windows (B, S) after each step that lifted a mask.

        Raises: ConfigError for a number of steps that first_hitting does not take.
        """
        model, config, settings = self.model, self.model.config, holes.settings

        def log_measure(window: Tensor, sigma: float, rows: Tensor) -> Tensor:
            return model.log_measure(model.features_at(window, sigma, rows))

        if config.predictor == "first_hitting":
            if settings.num_steps is not None:
                raise ConfigError(
                    f"num_steps={settings.num_steps} has no effect with model_cfg.predictor="
                    "first_hitting, which draws one token in each step; use analytic"
                )
            return first_hitting(log_measure, holes, mask_id=self.mask_id)
        return unmask(
            log_measure,
            holes,
            mask_id=self.mask_id,
            num_steps=settings.num_steps or config.sampling_steps,
            # Masks alone are where the noise is 1, which training with noise_eps > 0 never reaches.
            schedule=Linear() if config.schedule_name == "loglinear" else model.schedule,
            predictor=config.predictor,
            reuse=settings.use_cache and not config.knows_time,
        )
