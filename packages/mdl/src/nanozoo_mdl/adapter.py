"""How an MDLM is trained, scored and sampled.

B windows, L scored tokens, S = L + 1 positions, N gathered rows, D model_dim, V data tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Draw, Inspection, Loss, Nll, Step, Vocabulary
from nanozoo_core.diffusion.bounds import (
    MaskDraw,
    TokenLoss,
    draw_by_count,
    draw_by_step,
    draw_by_time,
    draw_nats,
    network_draw_sum,
    network_loss,
)
from nanozoo_core.diffusion.masked_nats import counts_to_name, named_nats, nats_by_count
from nanozoo_core.diffusion.sampling import WindowNoise, copies, draw_window_noise
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import DiffusionAdapter, cpu_scored
from nanozoo_core.machine.precision import in_float64
from nanozoo_mdl.generate import unmask
from nanozoo_mdl.model import MDLM

INSPECTED_SHARES = 8  # masked shares at which `inspect` measures the loss, beside one token alone


class MDLMAdapter(DiffusionAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """A draw or more for each window of the bound, or of its part over the noise that training
        is to see, in nats per scored token."""
        assert isinstance(model, MDLM)
        batch = copies(batch, model.config.train_draws)
        config, window = model.config, batch.window
        noise = draw_window_noise(step, batch, stratified=config.stratified)
        if config.time_sampler == "t":
            first, last = model.training_noise.of_times(model.schedule)
            draw = draw_by_time(
                noise,
                schedule=model.schedule,
                time_min=max(config.t_min, first),
                time_max=last,
                scored=cpu_scored(batch),
            )
        else:
            draw = bound_draw(model, model.training_noise.of_levels(noise), cpu_scored(batch))
        total = network_draw_sum(
            model.net, window[:, :1], model.mask_id, window[:, 1:], draw, model.time_input
        )
        return Loss(total / max(1, batch.num_scored))

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        """One draw of the bound on -log p of each window: over all of [0, 1], so that no term is
        left out, whatever training samples."""
        assert isinstance(model, MDLM)
        window = batch.window
        noise = draw_window_noise(draw, batch)
        token_loss = network_loss(model.net, window[:, :1], model.mask_id, model.time_input)
        nats = draw_nats(token_loss, window[:, 1:], bound_draw(model, noise, cpu_scored(batch)))
        return Nll(in_float64(nats), batch.num_scored)

    def steps(self, model: nn.Module, holes: Holes) -> Iterator[Tensor]:
        assert isinstance(model, MDLM)
        return unmask(model, holes)

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """The loss of a masked token by how many are masked: the bound is its mean over the share,
        between the loss of one hidden token and that of a text from nothing."""
        assert isinstance(model, MDLM)
        length = batches[0].window.shape[1] - 1
        shares = torch.arange(1, INSPECTED_SHARES + 1) / INSPECTED_SHARES
        counts = sorted({*counts_to_name(length), *(shares * length).long().clamp(min=1).tolist()})

        def token_loss(batch: Batch) -> TokenLoss:
            return network_loss(model.net, batch.window[:, :1], model.mask_id, model.time_input)

        found = nats_by_count(batches, counts, token_loss, model.schedule.time_of_noise)
        curve = Curves(
            title="Loss of a masked token",
            x_label="share of tokens masked",
            y_label="nats per token",
            series={"masked tokens": [(k / length, nats) for k, nats in found.items()]},
        )
        return Inspection(named_nats(found, length), (curve,))


def bound_draw(model: MDLM, noise: WindowNoise, scored: Tensor | None) -> MaskDraw:
    """An unbiased draw of the bound: in continuous time, or of the model of num_timesteps.

    Args: scored: (B, L) on the CPU, or None for all.
    """
    if model.config.continuous_time:
        return draw_by_count(noise, schedule=model.schedule, scored=scored)
    return draw_by_step(noise, model.count_law, scored=scored)


Adapter = MDLMAdapter
