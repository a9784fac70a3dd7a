"""Training loss, score and statistics of whole models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.diffusion.levels import INSPECTION_SEED
from nanozoo_core.diffusion.sampling import NoiseSource, draw_window_noise
from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.diffusion.laws import BoundLaws, LearningLaws
from nanozoo_core.testing.diffusion.models import SmallModels, watch
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_d3pm import adapter as d3pm_adapter
from nanozoo_d3pm.graph import cluster_order, cooccurrence_vectors, unit_rows
from nanozoo_d3pm.losses import general_kl
from nanozoo_d3pm.model import D3PM

FAMILIES = {
    "absorbing": {},
    "agnostic": {"time_conditioning": False},
    "uniform": {"cond_dim": 8, "transition_type": "uniform", "noise_schedule": "cosine"},
    "uniform-information": {"cond_dim": 8, "transition_type": "uniform"},
    "gaussian": {"cond_dim": 8, "transition_type": "gaussian", "noise_schedule": "linear"},
    "band": {
        "cond_dim": 8,
        "transition_type": "band",
        "noise_schedule": "linear",
        "band_width": 5,
    },
    "spectral": {"cond_dim": 8, "transition_type": "nearest_neighbor", "nearest_neighbors": 5},
    "clusters": {
        "cond_dim": 8,
        "transition_type": "nearest_neighbor",
        "nearest_neighbors": 4,
        "nn_mode": "clusters",
    },
}
MODELS = SmallModels("d3pm", FAMILIES, {"num_timesteps": 12, "sampling_timesteps": 12})
VOCAB, LENGTH = MODELS.vocab_size, MODELS.seq_len
EARLY_END = 0.0062  # gaussian_beta_max
ADAPTER = load_adapter("d3pm")
each_family = pytest.mark.parametrize("family", FAMILIES)


class TestBound(BoundLaws):
    models = MODELS
    uneven = ("clusters",)  # even predictions over V are uneven over the padded states
    bound_alone = {"auxiliary_loss_weight": 0.0}  # noqa: RUF012

    def share_of_rows(self, variant):
        return 0.5 if variant in ("absorbing", "agnostic") else 1.0

    def further_flops(self, variant):
        return 4 * VOCAB**2 if variant == "spectral" else 0


class TestLearning(LearningLaws):
    models = MODELS
    num_steps = 120
    # By heart means by place: what tells windows apart may stand far from a mask.
    changes = {"auxiliary_loss_weight": 0.1, "locality": 0.0}  # noqa: RUF012


@each_family
def test_inspection_takes_the_bound_apart(family):
    model = MODELS.make(family)
    batch = MODELS.windows(scored=MODELS.scored_before(4, -1))
    batches = [batch.take(slice(0, 2)), batch.take(slice(2, 6))]
    found = ADAPTER.inspect(model, batches, ToyVocabulary(VOCAB))
    with torch.no_grad():
        nll = ADAPTER.nll(model, batch, Draw(INSPECTION_SEED))
    assert found.metrics["bound_nats_per_token"] == pytest.approx(
        float(nll.nats.sum()) / nll.num_tokens, rel=1e-5
    )
    assert found.metrics["bound_bits_per_byte"] == pytest.approx(
        found.metrics["bound_nats_per_token"] / math.log(2)  # a token is a byte there
    )
    (curves,) = found.pictures
    assert list(curves.series) == ["bound", "cross_entropy"]
    assert [x for x, _ in curves.series["bound"]] == [0.125, 0.375, 0.625, 0.875]


def test_inspection_counts_masked_tokens_where_there_are_masks():
    """At t = T all are; uniform noise has none."""
    batch, vocabulary = MODELS.windows(20), ToyVocabulary(VOCAB)
    model = MODELS.make("absorbing", time_conditioning=True)
    found = ADAPTER.inspect(model, [batch], vocabulary)
    masks = torch.full_like(batch.tokens[:, 1:], VOCAB)
    with torch.no_grad():
        everything = torch.cat([batch.tokens[:, :1], masks], 1)
        logits = model(everything, torch.full((20,), 12))[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.mT, batch.tokens[:, 1:])
    assert found.metrics["nats_all_masked"] == pytest.approx(float(expected), rel=1e-5)
    assert found.metrics["nats_one_masked"] > 0
    found = ADAPTER.inspect(MODELS.make("uniform"), [batch], vocabulary)
    assert "nats_one_masked" not in found.metrics


def test_metrics_keep_the_bound_apart_from_the_cross_entropy():
    model = MODELS.make("absorbing", auxiliary_loss_weight=0.5)
    loss = ADAPTER.training_loss(model, MODELS.windows(), Step(0, 0.0, 0))
    factor = 0.5 * 12
    expected = (loss.metrics["nll"] + factor * loss.metrics["ce"]) / (1 + factor)
    assert_close(loss.value.detach(), expected)
    literal = MODELS.make("absorbing", auxiliary_loss_weight=0.5, auxiliary_loss_scale="total")
    assert literal.config.cross_entropy_factor == 0.5


@pytest.mark.parametrize("family", ["absorbing", "uniform", "spectral", "gaussian"])
def test_draws_average_to_the_exact_sum_over_timesteps(family):
    """The stratified estimator against T * mean_t KL_t with every t taken, noise still random."""
    model = MODELS.make(family)
    batch = MODELS.windows(3)
    with torch.no_grad():
        nats = torch.stack([ADAPTER.nll(model, batch, Draw(0, n)).nats for n in range(200)])
        exact = []
        for seed in range(25):
            total = 0.0
            for t in range(1, 13):
                total = total + timestep_nats(model, batch, t, seed)
            exact.append(total + model.transition.prior_kl(batch.tokens[:, 1:]).sum())
    exact_sum = torch.stack(exact)
    sums = nats.sum(1)
    error = math.hypot(
        float(sums.std()) / math.sqrt(len(sums)), float(exact_sum.std()) / math.sqrt(len(exact))
    )
    assert abs(float(sums.mean() - exact_sum.mean())) < 4 * error


def test_prior_is_paid_for_every_scored_token():
    """Of the uniform process that ends too early, whose bound the prior belongs to."""
    model = MODELS.make("uniform", num_timesteps=1, sampling_timesteps=1)
    each = float(model.transition.prior_kl_per_token)
    assert each > 1e-7
    with torch.no_grad():
        model.transition.log_keep[-1] = -0.5  # far from its end
    each = float(model.transition.prior_kl_per_token)
    assert each > 0.1
    batch = MODELS.windows(scored=MODELS.scored_before(4, -1))
    with torch.no_grad():
        bound, _ = terms_at(model, batch, Draw(0))
        nats = ADAPTER.nll(model, batch, Draw(0)).nats
        step = Step(0, 0.0, 0)
        terms, _ = terms_at(model, batch, step)
        loss = ADAPTER.training_loss(model, batch, step).metrics["nll"]
    assert_close(nats - bound.double(), each * torch.tensor([10.0] * 5 + [4.0]).double())
    assert float(loss) == pytest.approx(float(terms.sum()) / 54 + each, rel=1e-5)


def test_cross_entropy_under_masks_is_its_mean_over_the_steps():
    """The estimate by (masks, t) against every t in turn, each with masks of its own."""
    model, batch = MODELS.make("absorbing", time_conditioning=True), MODELS.windows(40)
    x0 = batch.tokens[:, 1:]
    with torch.no_grad():
        drawn = [float(terms_at(model, batch, Draw(0, n))[1].sum()) for n in range(60)]
        exact = []
        for seed in range(20):
            total = 0.0
            for t in range(1, 13):
                times = torch.full((40,), t)
                uniforms = torch.rand(
                    40, LENGTH, generator=seeded_generator(seed, t), dtype=torch.float64
                )
                xt = model.transition.corrupt(x0, times, uniforms)
                logits = model(torch.cat([batch.tokens[:, :1], xt], 1), times)[:, 1:]
                losses = torch.nn.functional.cross_entropy(logits.mT, x0, reduction="none")
                total += float((losses * (xt == VOCAB)).sum()) / 12
            exact.append(total)
    one, two = torch.tensor(drawn), torch.tensor(exact)
    error = math.hypot(float(one.std()) / math.sqrt(60), float(two.std()) / math.sqrt(20))
    assert abs(float(one.mean() - two.mean())) < 4 * error
    assert error < 0.01 * float(two.mean())


def test_prior_of_a_process_that_stops_early_is_in_the_score():
    """Gaussian noise whose betas leave 0.04 to 0.05 nats per token of x_0 at the end, the most that
    is allowed: against the entropy of the steps' product, made here from the steps."""
    model = MODELS.make("gaussian", terminal_mask=False, gaussian_beta_max=EARLY_END)
    steps = model.transition.steps.double()
    last = torch.linalg.multi_dot(list(steps[1:]))  # (V, V)
    prior = math.log(VOCAB) + torch.xlogy(last, last).sum(1)  # (V,)
    assert 0.04 < float(prior.max()) < 0.05
    batch = MODELS.windows(scored=MODELS.scored_before(4, -1))
    expected = (prior[batch.tokens[:, 1:]] * batch.scored).sum(1)
    assert float(expected.min()) > 0.01
    step = Step(0, 0.0, 0)
    with torch.no_grad():
        bound, _ = terms_at(model, batch, Draw(0))
        nats = ADAPTER.nll(model, batch, Draw(0)).nats
        terms, _ = terms_at(model, batch, step)
        loss = ADAPTER.training_loss(model, batch, step).metrics["nll"]
    assert_close(nats - bound.double(), expected, rtol=1e-4, atol=1e-5)
    assert float(loss) == pytest.approx(float(terms.sum() + expected.sum()) / 54, rel=1e-5)


def test_cross_entropy_under_masks_is_that_of_its_own_draw():
    """From the masks and times that were drawn: of T E_t sum_i CE_i the law of (masks, t) leaves
    L / k times the masked tokens' losses, over T w_t with w_t = 1 / t. The bound is that without
    the weights, so the two differ in every window with t below T."""
    steps = {"num_timesteps": 7, "sampling_timesteps": 7}
    model = MODELS.make("absorbing", time_conditioning=True, **steps)
    batch = MODELS.windows()
    seen, told = watch(model), []
    model.net.time_embedding.register_forward_pre_hook(
        lambda _, inputs: told.append(inputs[0][:, 0])
    )
    with torch.no_grad():
        bound, cross_entropy = terms_at(model, batch, Draw(0))
        logits = model.net(seen[0], told[0]).double()[:, 1:]
    masked = seen[0][:, 1:] == VOCAB
    t = told[0].double() * 7 / 1000
    losses = torch.nn.functional.cross_entropy(logits.mT, batch.tokens[:, 1:], reduction="none")
    mean = (losses * masked).sum(1) / masked.sum(1)
    assert_close(bound.double(), LENGTH * mean, rtol=1e-5, atol=0)
    assert_close(cross_entropy.double(), LENGTH * mean * t / 7, rtol=1e-5, atol=0)
    assert bool((t < 7).any())
    assert bool((t > 1).any())


def test_network_is_told_the_time_on_the_scale_of_its_features():
    model = MODELS.make("uniform")
    told = []
    model.net.time_embedding.register_forward_pre_hook(
        lambda _, inputs: told.append(inputs[0][:, 0])
    )
    with torch.no_grad():
        model(MODELS.windows(3).tokens, torch.tensor([1, 6, 12]))
    assert told[0].tolist() == pytest.approx([1000 / 12, 500.0, 1000.0])


def terms_at(model: D3PM, batch: Batch, source: NoiseSource) -> d3pm_adapter.Terms:
    """Both terms under the noise that a score or a step draws over all levels."""
    return d3pm_adapter.bound_terms(model, batch, draw_window_noise(source, batch))


def timestep_nats(model: D3PM, batch: Batch, t: int, seed: int) -> Tensor:
    """Sum over windows and tokens of KL_t by the general formula, in float64."""
    x0 = batch.tokens[:, 1:]
    times = torch.full((x0.shape[0],), t)
    generator = seeded_generator(seed, t)
    uniforms = torch.rand(x0.shape, generator=generator, dtype=torch.float64)
    xt = model.transition.corrupt(x0, times, uniforms)
    logits = model(torch.cat([batch.tokens[:, :1], xt], 1), times)[:, 1:]
    return general_kl(model.transition, logits.double().log_softmax(-1), x0, xt, times).sum()


@each_family
def test_both_terms_of_a_window_do_not_depend_on_its_batch(family):
    model, batch = MODELS.make(family), MODELS.windows()
    with torch.no_grad():
        whole = terms_at(model, batch, Draw(1))
        pairs = [terms_at(model, batch.take(slice(i, i + 2)), Draw(1)) for i in (0, 2, 4)]
    for together, alone in zip(whole, zip(*pairs, strict=True), strict=True):
        assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)


def test_float32_terms_are_those_of_float64():
    for family in ("spectral", "clusters", "gaussian", "uniform"):
        model = MODELS.make(family)
        with torch.no_grad():
            single = terms_at(model, MODELS.windows(), Draw(1))
            double = terms_at(model.double(), MODELS.windows(), Draw(1))
        for a, b in zip(single, double, strict=True):
            assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["uniform-information", "spectral", "clusters"])
def test_statistics_of_the_data_travel_with_the_weights(family):
    model = MODELS.make(family)
    torch.manual_seed(5)
    fresh = D3PM(MODELS.config(family))
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = ADAPTER.nll(model, MODELS.windows(), Draw(2)).nats
        assert torch.equal(ADAPTER.nll(fresh, MODELS.windows(), Draw(2)).nats, expected)


def test_graph_without_data_is_refused():
    with pytest.raises(AssertionError, match="prepare_model"):
        ADAPTER.nll(D3PM(MODELS.config("spectral")), MODELS.windows(), Draw(0))


def test_vectors_of_tokens_used_alike_are_neighbours():
    """Tokens 2i and 2i+1 are interchangeable in the text, so they are each other's nearest."""
    generator = seeded_generator(3)
    base = torch.arange(600) % 6
    tokens = 2 * base + torch.randint(2, (20, 600), generator=generator)
    vectors = cooccurrence_vectors([tokens], 12)
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-1)
    assert similarity.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]


def test_clusters_hold_similar_tokens():
    centers = torch.randn(4, 6, generator=seeded_generator(4), dtype=torch.float64) * 5
    group = torch.arange(16) % 4
    noise = torch.randn(16, 6, generator=seeded_generator(5), dtype=torch.float64)
    order = cluster_order(unit_rows(centers[group] + 0.1 * noise), 4)
    assert order.sort().values.tolist() == list(range(16))
    assert all(len(set(group[run].tolist())) == 1 for run in order.view(4, 4))


def test_vectors_from_a_file_need_one_row_per_token(tmp_path):
    import numpy as np

    path = tmp_path / "vectors.npy"
    np.save(path, np.ones((5, 3)))
    settings = {"transition_type": "nearest_neighbor", "nearest_neighbors": 5}
    for name, message in ((str(path), "24 rows"), ("missing.npy", "neither ppmi nor")):
        model = D3PM(MODELS.config("absorbing", nn_embeddings=name, **settings))
        with pytest.raises(ConfigError, match=message):
            ADAPTER.prepare_model(model, [MODELS.windows()])
    generator = np.random.default_rng(0)
    np.save(path, generator.standard_normal((VOCAB, 4)))
    model = D3PM(MODELS.config("absorbing", nn_embeddings=str(path), **settings))
    ADAPTER.prepare_model(model, [MODELS.windows()])
    assert bool(model.transition.tau.isfinite().all())


def test_model_builds_without_memory_for_counting():
    with torch.device("meta"):
        for family in FAMILIES:
            D3PM(MODELS.config(family))


def test_absorbing_loss_is_the_masked_cross_entropy_over_the_masked_share():
    """T KL_t = (1 / u) sum of masked losses at u = t / T, on the same masks."""
    model = MODELS.make("absorbing")
    batch = MODELS.windows()
    x0 = batch.tokens[:, 1:]
    for t in (1, 5, 12):
        times = torch.full((6,), t)
        uniforms = torch.rand(6, LENGTH, generator=seeded_generator(t), dtype=torch.float64)
        xt = model.transition.corrupt(x0, times, uniforms)
        with torch.no_grad():
            logits = model(torch.cat([batch.tokens[:, :1], xt], 1), times)[:, 1:].double()
        losses = torch.nn.functional.cross_entropy(logits.mT, x0, reduction="none")
        expected = (losses * (xt == VOCAB)).sum(1) * 12 / t
        kl = general_kl(model.transition, logits.log_softmax(-1), x0, xt, times)
        assert_close(12 * kl.sum(1), expected, rtol=1e-6, atol=1e-6)
