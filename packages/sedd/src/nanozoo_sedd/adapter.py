"""How a SEDD is trained, scored and sampled.

B windows, L scored tokens, D model_dim, V data tokens, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanozoo_core.contract import (
    Batch,
    Curves,
    Draw,
    Inspection,
    Likelihood,
    Loss,
    Nll,
    PartialText,
    SamplingSettings,
    Step,
    Vocabulary,
)
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.diffusion.bounds import (
    draw_by_count,
    draw_by_time,
    draw_nats,
    network_draw_sum,
    network_loss,
)
from nanozoo_core.diffusion.dit import dit_roles
from nanozoo_core.diffusion.levels import (
    INSPECTION_SEED,
    LEVELS,
    by_level,
    level_curves,
    means_by_unit,
    num_scored,
)
from nanozoo_core.diffusion.sampling import NoiseSource, WindowNoise, draw_noise
from nanozoo_core.diffusion.schedules import Linear
from nanozoo_sedd import generate, uniform
from nanozoo_sedd.config import SEDDConfig
from nanozoo_sedd.model import SEDD

CHUNK_BYTES = 64 << 20  # of one (rows, V) float32 tensor of the decoder
BY_NOISE = Linear()  # the schedule whose time is the noise 1 - alpha itself


class SEDDAdapter(DefaultModelAdapter):
    likelihood: Likelihood = "upper"

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean score entropy in nats per token. With time_sampler=t it leaves out t < t_min, and
        under uniform noise both ends of the bound: for training alone."""
        assert isinstance(model, SEDD)
        noise = _noise(step, batch, stratified=model.config.stratified)
        if model.config.is_absorbing:
            total = _masked_training_sum(model, batch, noise)
        else:
            t_min = model.config.t_min
            times = t_min + (1 - t_min) * (1 - noise.level)  # in (t_min, 1]
            nats = _uniform_integral(model, batch, times, noise.uniforms)
            total = (1 - t_min) * nats.sum()
        return Loss((total / max(1, batch.num_scored)).float())

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        """One draw of the bound on -log p of each window, with all of its terms. What it bounds is
        the likelihood of ever smaller steps, whatever number is used to sample."""
        assert isinstance(model, SEDD)
        if model.config.is_absorbing:
            nats = _masked_nats(model, batch, _noise(draw, batch))
        else:
            nats = uniform_terms(model, batch, uniform_noise(draw, batch)).total
        return Nll(nats.double(), batch.num_scored)

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        return dit_roles(model)

    def denoise(
        self,
        model: nn.Module,
        window: PartialText,
        settings: SamplingSettings,
        generator: torch.Generator,
    ) -> Iterator[list[int | None]]:
        assert isinstance(model, SEDD)
        yield from generate.fill(model, window, settings, generator)

    def flops_per_token(self, config: SEDDConfig, seq_len: int) -> float:
        """6 per weight of the blocks, 6 D V for each row that meets the head (half of them under
        absorbing), and attention as a full square."""
        assert config.vocab_size is not None
        width = config.model_dim
        blocks = config.num_layers * (4 + 2 * config.mlp_ratio) * width**2
        head = width * config.vocab_size * (0.5 if config.is_absorbing else 1.0)
        return float(6 * (blocks + head) + 12 * config.num_layers * width * seq_len)

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """The bound by the level of noise, from one draw. With masks, beside it the bound of the
        normalised model, which shows what masses off 1 cost; under uniform noise, its terms."""
        assert isinstance(model, SEDD)
        if not any(batch.num_scored for batch in batches):
            return None
        look = _inspect_masked if model.config.is_absorbing else _inspect_uniform
        terms, picture = look(model, batches)
        return Inspection(means_by_unit(terms, batches, vocabulary), (picture,))


# -- noise ----------------------------------------------------------------------------------------


def _noise(source: NoiseSource, batch: Batch, *, stratified: bool = True) -> WindowNoise:
    """A level and one uniform per scored token of each window."""
    length = batch.window.shape[1] - 1
    return draw_noise(source, batch.rows, batch.num_rows, length, stratified=stratified)


def _scored(batch: Batch) -> Tensor | None:
    return None if batch.scored is None else batch.scored.cpu()


# -- masks ----------------------------------------------------------------------------------------


def _masked_training_sum(model: SEDD, batch: Batch, noise: WindowNoise) -> Tensor:
    """Score entropy summed over the windows, by the number of masks or by the time."""
    config, window = model.config, batch.window
    if config.draws_counts:
        draw = draw_by_count(noise, schedule=BY_NOISE, scored=_scored(batch))
        sigma = BY_NOISE.sigma
    else:
        draw = draw_by_time(
            noise, schedule=model.schedule, time_min=config.t_min, scored=_scored(batch)
        )
        sigma = model.schedule.sigma
    return network_draw_sum(
        model.net,
        window[:, :1],
        model.mask_id,
        window[:, 1:],
        draw,
        lambda time: model.told(sigma(time)),
        normalised=False,
    )


def _masked_nats(
    model: SEDD, batch: Batch, noise: WindowNoise, *, normalised: bool = False
) -> Tensor:
    """One draw of the bound per window, (B,). All noise from none to everything is covered, so
    neither a prior nor a reconstruction term is left, whatever the training schedule.

    The score entropy of a masked token over its weight -alpha' / (1 - alpha) is, in terms of the
    prediction u of x_0, sum_y u_y - 1 - log u_{x_0}: a cross-entropy if u sums to one. Tokens that
    are not masked have none.

    Reference: arXiv 2310.16834, theorem 3.4 with the ratios of the absorbing process.
    """
    window = batch.window
    token_loss = network_loss(
        model.net,
        window[:, :1],
        model.mask_id,
        lambda time: model.told(BY_NOISE.sigma(time)),
        normalised=normalised,
    )
    draw = draw_by_count(noise, schedule=BY_NOISE, scored=_scored(batch))
    return draw_nats(token_loss, window[:, 1:], draw)


def _inspect_masked(model: SEDD, batches: Sequence[Batch]) -> tuple[dict[str, float], Curves]:
    """The bound of the model and of the normalised one, on the same noise."""
    names = ("bound", "bound_normalised")
    levels, nats = [], []
    for batch in batches:
        noise = _noise(Draw(INSPECTION_SEED), batch)
        levels.append(noise.level)
        both = [_masked_nats(model, batch, noise, normalised=choice) for choice in (False, True)]
        nats.append(torch.stack(both, dim=1))
    parts, means = by_level(batches, levels, nats)
    series = level_curves(names, parts)
    curves = Curves("The bound by masked share", "masked share", "nats per token", series)
    return dict(zip(names, means, strict=True)), curves


# -- uniform noise --------------------------------------------------------------------------------


class UniformTerms(NamedTuple):
    """The bound of each window, (B,) nats; `total` is their sum."""

    integral: Tensor
    prior: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.integral + self.prior + self.reconstruction


def uniform_noise(source: NoiseSource, batch: Batch) -> WindowNoise:
    """As `_noise`, with a second uniform per token for the reconstruction."""
    return draw_noise(source, batch.rows, batch.num_rows, 2, batch.window.shape[1] - 1)


def uniform_terms(model: SEDD, batch: Batch, noise: WindowNoise) -> UniformTerms:
    """One draw: an x_t at a stratified time in (0, 1], and another x_t at t = 0 to decode."""
    window = batch.window
    times, weights = uniform.spread_times(noise.level, model.schedule)
    integral = _uniform_integral(model, batch, times, noise.uniforms[:, 0])
    integral = integral * weights.to(integral)
    reconstruction = uniform.reconstruction(
        lambda corrupted, tokens, sigma: _decode(model, window[:, :1], corrupted, tokens, sigma),
        window[:, 1:],
        noise.uniforms[:, 1],
        schedule=model.schedule,
        vocab_size=model.vocab_size,
        scored=batch.scored,
    )
    prior = uniform.prior_kl(model.schedule, model.vocab_size)
    return UniformTerms(
        integral, num_scored(batch).to(integral) * prior, reconstruction.to(integral)
    )


def _uniform_integral(model: SEDD, batch: Batch, times: Tensor, uniforms: Tensor) -> Tensor:
    """The integrand at times (B,), with one x_t each: (B,)."""
    context = batch.window[:, :1]
    return uniform.integral(
        lambda corrupted, tokens, sigma: model.score_sums(corrupted, tokens, sigma, context),
        batch.window[:, 1:],
        times,
        uniforms,
        schedule=model.schedule,
        vocab_size=model.vocab_size,
        scored=batch.scored,
    )


def _decode(
    model: SEDD, context: Tensor, corrupted: Tensor, tokens: Tensor, sigma: float
) -> Tensor:
    """log p(x_0 = tokens | x_t = corrupted), each (B, L), some rows at a time."""
    noise = torch.full((1,), sigma, dtype=torch.float64)
    features = model.features(torch.cat([context, corrupted], dim=1), noise)[:, 1:].flatten(0, 1)
    own, true = corrupted.flatten(), tokens.flatten()
    size = max(1, CHUNK_BYTES // (4 * model.vocab_size))
    log_probs = []
    for start in range(0, len(own), size):
        rows = slice(start, start + size)
        scores = model.log_scores(features[rows], own[rows], sigma).exp()
        probs = uniform.decoder_probs(scores, own[rows], sigma)
        log_probs.append(probs.gather(1, true[rows, None])[:, 0].log())
    return torch.cat(log_probs).view_as(tokens)


def _inspect_uniform(model: SEDD, batches: Sequence[Batch]) -> tuple[dict[str, float], Curves]:
    """The three terms of the bound, and the first of them by time."""
    levels, nats = [], []
    for batch in batches:
        noise = uniform_noise(Draw(INSPECTION_SEED), batch)
        levels.append(noise.level)
        nats.append(torch.stack(uniform_terms(model, batch, noise), dim=1))
    parts, means = by_level(batches, levels, nats)
    centres = (torch.arange(LEVELS) + 0.5) / LEVELS
    times, _ = uniform.spread_times(centres, model.schedule)
    points = sorted(zip(times.tolist(), (row[0] for row in parts), strict=True))
    title = "The integral by time, in parts of equal weight"
    curves = Curves(title, "time", "nats per token", {"integral": points})
    return dict(zip(UniformTerms._fields, means, strict=True)), curves


Adapter = SEDDAdapter
