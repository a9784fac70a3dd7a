"""How an MDLM is trained, scored and sampled.

B windows, L scored tokens, S = L + 1 positions, C tokens of a block, D model_dim, V data tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Draw, Inspection, Loss, Nll, Step, Vocabulary
from nanozoo_core.diffusion.bounds import (
    MaskDraw,
    TokenLoss,
    draw_by_count,
    draw_by_step,
    draw_by_time,
    draw_in_runs,
    draw_nats,
    network_draw_sum,
    network_loss,
)
from nanozoo_core.diffusion.masked_nats import counts_to_name, named_nats, nats_by_count
from nanozoo_core.diffusion.sampling import WindowNoise, copies
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import DiffusionAdapter, cpu_scored
from nanozoo_core.machine.precision import in_float64
from nanozoo_mdl.blocks import BlockNetwork, Blocks
from nanozoo_mdl.generate import unmask
from nanozoo_mdl.model import MDLM

INSPECTED_SHARES = 8  # masked shares at which `inspect` measures the loss, beside one token alone


class MDLMAdapter(DiffusionAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """A draw or more for each block of each window of the bound, or of its part over the noise
        that training is to see, in nats per scored token."""
        assert isinstance(model, MDLM)
        batch = copies(batch, model.config.train_draws)
        config, window = model.config, batch.window
        noise = model.blocks.noise(step, batch, stratified=config.stratified)
        if config.time_sampler == "t":
            first, last = model.training_noise.of_times(model.schedule)
            by_time = partial(
                draw_by_time,
                schedule=model.schedule,
                time_min=max(config.t_min, first),
                time_max=last,
            )
            run = model.blocks.run(window.shape[1] - 1)
            draw = draw_in_runs(by_time, noise, run, cpu_scored(batch))
        else:
            draw = bound_draw(model, model.training_noise.of_levels(noise), cpu_scored(batch))
        net = BlockNetwork(model.net, model.blocks, window)
        total = network_draw_sum(
            net, window[:, :1], model.mask_id, window[:, 1:], draw, model.time_input
        )
        return Loss(total / max(1, batch.num_scored))

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        """One draw of the bound on -log p of each window, the sum over its blocks: over all of
        [0, 1], so that no term is left out, whatever training samples."""
        assert isinstance(model, MDLM)
        window = batch.window
        noise = model.blocks.noise(draw, batch)
        token_loss = loss_of_window(model, window)
        nats = draw_nats(token_loss, window[:, 1:], bound_draw(model, noise, cpu_scored(batch)))
        return Nll(in_float64(nats), batch.num_scored)

    def flops_per_token(self, config: Any, seq_len: int) -> float:
        """Of one block as of any DiT. Several read clean text beside the noised, which noised
        tokens see in full and clean ones without the noised; and where counts are drawn, every
        block masks a token at least."""
        number = Blocks(config.block_size or config.seq_len).number(seq_len)
        num_clean = (number - 1) * (config.block_size or 0)
        width, layers = config.model_dim, config.num_layers
        weights = layers * (4 + 2 * config.mlp_ratio) * width**2 * num_clean / seq_len
        pairs = num_clean + num_clean**2 / seq_len  # for each scored token
        rows = (number - 1) / (2 * seq_len) if config.time_sampler == "k" else 0
        more = 6 * (weights + width * config.vocab_size * rows) + 12 * layers * width * pairs
        return super().flops_per_token(config, seq_len) + config.train_draws * more

    def denoised_length(self, model: nn.Module, length: int) -> int:
        """Block by block: to the end of the last block that has a token."""
        assert isinstance(model, MDLM)
        if model.config.block_size is None:
            return model.max_context
        last = int(model.blocks.of(torch.tensor(length - 1)))
        return min(model.blocks.span(last)[1], model.max_context)

    def steps(self, model: nn.Module, holes: Holes) -> Iterator[Tensor]:
        assert isinstance(model, MDLM)
        return unmask(model, holes)

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """The loss of a masked token by how many of its block are masked: the bound is its mean
        over the share, between the loss of one hidden token and that of a block from nothing."""
        assert isinstance(model, MDLM)
        length = model.blocks.run(batches[0].window.shape[1] - 1)
        shares = torch.arange(1, INSPECTED_SHARES + 1) / INSPECTED_SHARES
        counts = sorted({*counts_to_name(length), *(shares * length).long().clamp(min=1).tolist()})
        found = nats_by_count(
            batches,
            counts,
            lambda batch: loss_of_window(model, batch.window),
            model.schedule.time_of_noise,
            run=length,
        )
        curve = Curves(
            title="Loss of a masked token",
            x_label="share of tokens masked",
            y_label="nats per token",
            series={"masked tokens": [(k / length, nats) for k, nats in found.items()]},
        )
        return Inspection(named_nats(found, length), (curve,))


def bound_draw(model: MDLM, noise: WindowNoise, scored: Tensor | None) -> MaskDraw:
    """An unbiased draw of the bound of each block: in continuous time, or of the model of
    num_timesteps.

    Args: scored: (B, L) on the CPU, or None for all.
    """
    if model.config.continuous_time:
        draw = partial(draw_by_count, schedule=model.schedule)
    else:
        draw = partial(draw_by_step, law=model.count_law)
    return draw_in_runs(draw, noise, model.blocks.run(noise.uniforms.shape[1]), scored)


def loss_of_window(model: MDLM, window: Tensor) -> TokenLoss:
    """Of the tokens of windows (B, S), each block given those before it."""
    net = BlockNetwork(model.net, model.blocks, window)
    return network_loss(net, window[:, :1], model.mask_id, model.time_input)


Adapter = MDLMAdapter
