"""How a D3PM is trained, scored and sampled.

B windows, L scored tokens, D model_dim, V data tokens, N gathered rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanozoo_core.contract import Batch, Draw, Inspection, Loss, Nll, Step, Vocabulary
from nanozoo_core.diffusion.bounds import TokenLoss, draw_counts_and_steps, network_loss
from nanozoo_core.diffusion.levels import INSPECTION_SEED
from nanozoo_core.diffusion.sampling import (
    WindowNoise,
    choose_masked,
    copies,
    draw_window_noise,
    mask_counts,
)
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import (
    DiffusionAdapter,
    inspect_levels,
    level_picture,
    with_masked_nats,
)
from nanozoo_core.machine.precision import finest_dtype, in_float64
from nanozoo_core.ops.log_mixture import log_mixture
from nanozoo_d3pm import generate, graph
from nanozoo_d3pm.config import D3PMConfig
from nanozoo_d3pm.graph_transitions import GraphTransition
from nanozoo_d3pm.losses import (
    UniformRates,
    general_kl,
    hybrid_loss,
    posterior_cross_entropy,
    uniform_kl_and_cross_entropy,
)
from nanozoo_d3pm.model import D3PM
from nanozoo_d3pm.transitions import Absorbing, Transition, Uniform

CHUNK_BYTES = 64 << 20  # of one (windows, L, K) float32 tensor of the general bound

Terms = tuple[Tensor, Tensor]
"""One draw of the bound (T KL_t, summed over the scored tokens) and of the cross-entropy of x_0
(likewise summed), each (B,) nats."""


class D3PMAdapter(DiffusionAdapter):
    def prepare_model(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Fits the schedule and the token graph, where they depend on the data."""
        assert isinstance(model, D3PM)
        transition, config = model.transition, model.config
        if not transition.needs_data:
            return
        windows = [batch.window.cpu() for batch in batches]
        counts = graph.token_counts(windows, config.vocab_size)
        vectors = None
        if isinstance(transition, GraphTransition):
            if config.nn_embeddings == "ppmi":
                vectors = graph.cooccurrence_vectors(windows, config.vocab_size)
            else:
                vectors = graph.load_vectors(config.nn_embeddings, config.vocab_size)
        transition.fit(counts / counts.sum(), vectors)

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """The hybrid loss in nats per token, with the bound ("nll") and the cross-entropy apart;
        both over the noise that training is to see."""
        assert isinstance(model, D3PM)
        batch = copies(batch, model.config.train_draws)
        noise = model.training_noise.of_levels(draw_window_noise(step, batch))
        bound, cross_entropy = bound_terms(model, batch, noise)
        num_scored = max(1, batch.num_scored)
        prior = prior_nats(model, batch).sum().to(bound.device, finest_dtype(bound.device))
        bound = (bound.sum() + prior) / num_scored
        cross_entropy = cross_entropy.sum() / num_scored
        loss = hybrid_loss(bound, cross_entropy, model.config.cross_entropy_factor)
        metrics = {"nll": bound.detach().float(), "ce": cross_entropy.detach().float()}
        return Loss(loss.float(), metrics)

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        """One draw of the bound on -log p of each window, prior term included. It bounds the
        likelihood of the T-step model, whatever number of steps is later used to sample."""
        assert isinstance(model, D3PM)
        bound, _ = bound_terms(model, batch, draw_window_noise(draw, batch))
        return Nll(in_float64(bound) + prior_nats(model, batch), batch.num_scored)

    def steps(self, model: nn.Module, holes: Holes) -> Iterator[Tensor]:
        assert isinstance(model, D3PM)
        return generate.sample(model, holes)

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """One draw of the bound and of the cross-entropy of x_0, by the level of noise; with masks
        the loss of a masked token by how many are as well."""
        assert isinstance(model, D3PM)
        source, names = Draw(INSPECTION_SEED), ("bound", "cross_entropy")

        def look(batch: Batch) -> tuple[Tensor, Tensor]:
            noise = draw_window_noise(source, batch)
            bound, cross_entropy = bound_terms(model, batch, noise)
            bound = in_float64(bound) + prior_nats(model, batch)
            return noise.level, torch.stack([bound, in_float64(cross_entropy)], dim=1)

        picture = level_picture("The bound by noise", "level of noise", names)
        found = inspect_levels(batches, vocabulary, names, look, picture)
        if not isinstance(model.transition, Absorbing):
            return found

        def token_loss(batch: Batch) -> TokenLoss:
            return network_loss(model.net, batch.window[:, :1], model.vocab_size, model.time_input)

        steps = model.config.num_timesteps
        return with_masked_nats(found, batches, token_loss, lambda noise: noise * steps)

    def head_share(self, config: D3PMConfig) -> float:
        """Half of the rows under absorbing, which predicts masked tokens alone; else all."""
        return 0.5 if config.transition_type == "absorbing" else 1.0

    def flops_per_token(self, config: D3PMConfig, seq_len: int) -> float:
        """Those of the network, and the products with an exact graph's basis."""
        flops = super().flops_per_token(config, seq_len)
        if config.transition_type == "nearest_neighbor" and not config.uses_clusters:
            flops += config.train_draws * 4 * config.vocab_size**2
        return flops


def bound_terms(model: D3PM, batch: Batch, noise: WindowNoise) -> Terms:
    """One draw for every window of `batch`, whose levels of noise are in [0, 1)."""
    if isinstance(model.transition, Absorbing):
        return _absorbing_terms(model, model.transition, batch, noise)
    t = mask_counts(noise.level, torch.full_like(batch.rows, model.config.num_timesteps))
    window = batch.window
    corrupted = model.transition.corrupt(window[:, 1:], t, noise.uniforms)
    if batch.scored is not None:  # what is not scored is clean context
        corrupted = torch.where(batch.scored, corrupted, window[:, 1:])
    features = model.features(torch.cat([window[:, :1], corrupted], dim=1), t)[:, 1:]
    if isinstance(model.transition, Uniform):
        kl, ce = _uniform_terms(model, model.transition, features, window[:, 1:], corrupted, t)
    else:
        kl, ce = _general_terms(model, features, window[:, 1:], corrupted, t)
    if batch.scored is not None:
        kl, ce = kl * batch.scored, ce * batch.scored
    return model.config.num_timesteps * kl.sum(1), ce.sum(1)


def prior_nats(model: D3PM, batch: Batch) -> Tensor:
    """KL(q(x_T | x_0) || p(x_T)) of each window's scored tokens, (B,) float64."""
    window = batch.window
    kl = model.transition.prior_kl(window[:, 1:])
    if batch.scored is not None:
        kl = kl * batch.scored.to(kl.device)
    total = kl.sum(1)
    has_float64 = finest_dtype(window.device) == torch.float64
    return total.to(window.device) if has_float64 else total


def _absorbing_terms(model: D3PM, transition: Absorbing, batch: Batch, noise: WindowNoise) -> Terms:
    """Draws (masked tokens, time) under the law that turns the weighted sum into a plain mean."""
    window, scored = batch.window, batch.scored
    targets = window[:, 1:]
    num_scored = torch.full_like(batch.rows, targets.shape[1])
    if scored is not None:
        scored = scored.cpu()
        num_scored = scored.sum(1)
    counts, t = draw_counts_and_steps(noise.level, num_scored, transition.count_law)
    masked = choose_masked(noise.uniforms, counts, scored)
    token_loss = network_loss(model.net, window[:, :1], transition.vocab_size, model.time_input)
    losses = token_loss(targets, masked, t)  # (B, L)
    share = num_scored / counts.clamp(min=1)
    bound = losses.sum(1) * share.to(losses)
    # E_t of the cross-entropy is the bound without its weights w_t, over T.
    per_step = 1 / (model.config.num_timesteps * transition.weight(t))
    return bound, bound * per_step.to(losses)


def _uniform_terms(
    model: D3PM, transition: Uniform, features: Tensor, x0: Tensor, xt: Tensor, t: Tensor
) -> Terms:
    rates = UniformRates.at(transition, t)
    ratio = rates.ratio.float().to(x0.device).expand(x0.shape)
    net = model.net
    parts = log_mixture(
        features.flatten(0, 1),
        net.output_weight,
        net.output_bias,
        xt.flatten(),
        x0.flatten(),
        ratio.flatten(),
    )
    log_own, log_true, total = (part.view(x0.shape) for part in parts)
    return uniform_kl_and_cross_entropy(rates, log_own, log_true, total, xt == x0)


def _general_terms(model: D3PM, features: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Terms:
    """A few windows at a time, made again in the backward pass: (B, L, K) is never whole."""
    size = max(1, CHUNK_BYTES // (4 * x0.shape[1] * model.transition.num_states))
    net = model.net

    def terms(h: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Terms:
        logits = nn.functional.linear(h, weight, bias)
        return general_terms(model.transition, logits, a, b, t)

    results = [
        checkpoint(
            terms,
            features[start : start + size],
            net.output_weight,
            net.output_bias,
            x0[start : start + size],
            xt[start : start + size],
            t[start : start + size],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, x0.shape[0], size)
    ]
    kl, ce = zip(*results, strict=True)
    return torch.cat(kl), torch.cat(ce)


def general_terms(
    transition: Transition, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor
) -> Terms:
    """KL_t and cross-entropy (B, L) from logits (B, L, V), in float32 also under autocast."""
    with torch.autocast(logits.device.type, enabled=False):
        if logits.dtype != torch.float64:
            logits = logits.float()
        log_probs = logits.log_softmax(-1)
        kl = general_kl(transition, log_probs, x0, xt, t)
        return kl, posterior_cross_entropy(transition, log_probs, x0, xt, t)


Adapter = D3PMAdapter
