"""Training loss and score of whole models, and of exact tables in the network's place."""

from __future__ import annotations

import math

import pytest
import torch
import toy_scores as exact
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.diffusion.bounds import MaskDraw, network_draw_sum
from nanozoo_core.diffusion.sampling import draw_noise
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import ToyVocabulary, toy
from nanozoo_core.testing.diffusion.laws import BoundLaws, LearningLaws
from nanozoo_core.testing.diffusion.models import SmallModels, watch
from nanozoo_sedd import uniform
from nanozoo_sedd.model import SEDD
from nanozoo_sedd.uniform_graph import UniformGraph

UNIFORM = {"transition_type": "uniform", "cond_dim": 8}
FAMILIES = {
    "absorbing": {},
    "agnostic": {"time_conditioning": False},
    "timed": {"time_sampler": "t"},
    "geometric": {"time_sampler": "t", "noise_schedule": "geometric"},
    "uniform": UNIFORM,
    "uniform-loglinear": UNIFORM | {"noise_schedule": "loglinear"},
    "denoiser": UNIFORM | {"score_param": "denoiser"},
}
MODELS = SmallModels("sedd", FAMILIES, {})
VOCAB, LENGTH = MODELS.vocab_size, MODELS.seq_len
ADAPTER = load_adapter("sedd")


def train(model: SEDD, batch: Batch, number: int = 0) -> Tensor:
    return ADAPTER.training_loss(model, batch, Step(number, 0.0, 0)).value


class TestBound(BoundLaws):
    models = MODELS

    def share_of_rows(self, variant):
        return 0.5 if self.models.config(variant).is_absorbing else 1.0


class TestLearning(LearningLaws):
    models = MODELS


@pytest.mark.parametrize("family", ["timed", "geometric", "uniform", "denoiser"])
def test_training_over_all_times_estimates_the_score_but_for_its_ends(family):
    """Two estimators of one integral: by time, and (with masks) by the number of masks."""
    model = MODELS.make(family, t_min=0.0, **({"noise_eps": 0.0} if family == "timed" else {}))
    batch, losses, scores = MODELS.windows(120), [], []
    with torch.no_grad():
        for n in range(16):
            losses.append(float(train(model, batch, n)))
            if model.config.is_absorbing:
                nats = ADAPTER.nll(model, batch, Draw(0, n)).nats
            else:
                graph = UniformGraph(model)
                noise = graph.noise(Draw(0, n), batch)
                nats = graph.terms(batch, noise).integral
            scores.append(float(nats.sum()) / (120 * LENGTH))
    one, two = torch.tensor(losses), torch.tensor(scores)
    error = math.hypot(float(one.std()), float(two.std())) / 4
    assert abs(float(one.mean() - two.mean())) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("family", ["timed", "uniform"])
def test_strata_are_for_training_alone(family):
    batch = MODELS.windows()
    models = [MODELS.make(family, stratified=stratified) for stratified in (True, False)]
    with torch.no_grad():
        losses = [float(train(model, batch)) for model in models]
        scores = [ADAPTER.nll(model, batch, Draw(0)).nats for model in models]
    assert losses[0] != losses[1]
    assert torch.equal(*scores)


def test_score_with_masks_holds_every_number_of_them_once():
    """Of as many windows as there are scored tokens: so the score is stratified."""
    model = MODELS.make("timed")
    seen = watch(model)
    with torch.no_grad():
        ADAPTER.nll(model, MODELS.windows(LENGTH), Draw(0))
    assert sorted((seen[0] == VOCAB).sum(1).tolist()) == list(range(1, LENGTH + 1))


def told_noise(model: SEDD) -> list[Tensor]:
    """The sigmas that the network is told from now on, call by call."""
    told: list[Tensor] = []
    model.net.time_embedding.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    return told


@pytest.mark.parametrize(
    "changes", [{}, {"noise_schedule": "geometric", "sigma_max": 5.0}], ids=str
)
def test_network_is_told_the_noise_of_its_masks(changes):
    """About 1 - e^-sigma of the tokens are masked in training, whose windows have sigma each. The
    score draws k masks of L and the noise given k, which is k / (L + 1) on average."""
    model = MODELS.make("timed", time_conditioning=True, t_min=0.3, **changes)
    seen, told, batch = watch(model), told_noise(model), MODELS.windows(64)
    with torch.no_grad():
        ADAPTER.nll(model, batch, Draw(0))
        train(model, batch)
    for tokens, sigma, size in zip(seen, told, (LENGTH + 1, LENGTH), strict=True):
        share = -torch.expm1(-sigma.double())
        gap = ((tokens[:, 1:] == VOCAB).double().sum(1) / size - share).mean()
        assert abs(float(gap)) < 4 * 0.5 / math.sqrt(64 * LENGTH)
        assert float(share.std()) > 0.1


def test_uniform_training_draws_its_times_from_the_least_one_on():
    """The loss is the integral over [t_min, 1], by midpoints here, of the mean over many draws."""
    model = MODELS.make("uniform", t_min=0.4, sigma_min=0.1, sigma_max=4.0)
    graph, batch = UniformGraph(model), MODELS.windows(200)
    told = told_noise(model)
    with torch.no_grad():
        losses = torch.stack([train(model, batch, n) for n in range(8)])
        least = model.schedule.sigma(torch.tensor(0.4, dtype=torch.float64))
        assert float(torch.cat(told).min()) == pytest.approx(float(least), rel=0.02)
        total = 0.0
        for n in range(40):
            time = torch.full((200,), 0.4 + 0.6 * (n + 0.5) / 40, dtype=torch.float64)
            uniforms = torch.rand(200, LENGTH, generator=seeded_generator(n), dtype=torch.float64)
            total += 0.6 / 40 * float(graph._integral(batch, time, uniforms).sum())
    expected = total / (200 * LENGTH)
    assert abs(float(losses.mean()) - expected) < 0.03 * expected


def test_score_has_every_term_of_the_bound():
    """Their sum for the scored tokens; of the prior so many times its closed form."""
    model = MODELS.make("uniform", sigma_min=0.01, sigma_max=2.0)
    graph, batch = UniformGraph(model), MODELS.windows(scored=MODELS.scored_before(4, -1))
    with torch.no_grad():
        terms = graph.terms(batch, graph.noise(Draw(0), batch))
        nats = ADAPTER.nll(model, batch, Draw(0)).nats
    prior = uniform.prior_kl(model.schedule, VOCAB)
    assert prior > 0.01
    assert terms.prior.tolist() == pytest.approx([10 * prior] * 5 + [4 * prior], rel=1e-6)
    assert float(terms.reconstruction.min()) > 0.001
    assert_close(nats, (terms.integral + terms.prior + terms.reconstruction).double())


def test_scores_are_what_the_logits_mean():
    """From the logits a, by the formulas of the docstring, for each kind of model; float64."""
    batch, sigma = MODELS.windows(3), 0.7
    tokens = batch.window[:, 1:]
    corrupted = torch.where(torch.arange(LENGTH) % 2 == 0, tokens, (tokens + 5) % VOCAB)
    window = torch.cat([batch.window[:, :1], corrupted], dim=1)
    rows = torch.arange(3 * (LENGTH + 1))
    noise = torch.full((3,), sigma, dtype=torch.float64)
    own = window.flatten()
    for family in ("absorbing", "uniform", "denoiser"):
        model = MODELS.make(family).double()
        with torch.no_grad():
            logits = model(window, noise)
            features = model.features_at(window, sigma, rows)
            if family == "absorbing":
                expected = logits.flatten(0, 1) - math.log(VOCAB)
                assert_close(model.log_measure(features), expected, rtol=0, atol=1e-10)
                continue
            found = model.log_scores(features, own, sigma).view(3, -1, VOCAB)
            sums = model.score_sums(corrupted, tokens, noise, batch.window[:, :1])
        scores = logits.exp()
        if family == "denoiser":
            scores = 1 + VOCAB / (math.exp(sigma) - 1) * logits.softmax(-1)
            scores = scores / scores.gather(-1, window[..., None])
        scores = scores.scatter(-1, window[..., None], 1.0)
        assert_close(found, scores.log(), rtol=0, atol=1e-10)
        wanted = exact.sums_of(scores[:, 1:].log(), corrupted, tokens)
        for one, two in zip(sums, wanted, strict=True):
            assert_close(one, two, rtol=1e-5, atol=1e-5)


# -- the network's place taken by logits ----------------------------------------------------------


def with_logits(family: str, logits_of, vocab_size: int = VOCAB, **changes: object) -> SEDD:
    """A model whose a is logits_of(window (B, S), sigma (B,)) (B, S, V)."""
    model = MODELS.make(family, vocab_size=vocab_size, **changes)
    model.net.head = nn.Linear(vocab_size, vocab_size, dtype=torch.float64)
    nn.init.eye_(model.net.head.weight)
    nn.init.zeros_(model.net.head.bias)
    model.net.features = logits_of  # type: ignore[method-assign]
    return model


def random_logits(tokens: Tensor, time: Tensor) -> Tensor:
    generator = seeded_generator(4)
    return torch.randn(*tokens.shape, VOCAB, generator=generator, dtype=torch.float64)


def normalised_logits(tokens: Tensor, time: Tensor) -> Tensor:
    return random_logits(tokens, time).log_softmax(-1) + math.log(VOCAB)


def masked_diffusion_loss(model: SEDD, batch: Batch, step: Step, logits: Tensor) -> tuple:
    """MDLM's loss, d sigma / (e^sigma - 1) times the cross-entropy of masked tokens (arXiv
    2406.07524, eq. 10, and its code), per token; and the same with S - 1 - log S in its place."""
    noise = draw_noise(step, batch.rows, batch.num_rows, LENGTH)
    t_min = model.config.t_min
    t = t_min + (1 - t_min) * (1 - noise.level)
    sigma, rate = model.schedule.sigma(t), model.schedule.sigma_rate(t)
    masked = noise.uniforms < 1 - torch.exp(-sigma)[:, None]
    weight = masked * (1 - t_min) * (rate / torch.expm1(sigma))[:, None]
    cross_entropy = nn.functional.cross_entropy(
        logits[:, 1:].transpose(1, 2), batch.window[:, 1:], reduction="none"
    )
    log_mass = logits[:, 1:].logsumexp(-1) - math.log(VOCAB)
    penalty = log_mass.exp() - 1 - log_mass
    return (weight * cross_entropy).sum() / (6 * LENGTH), (weight * penalty).sum() / (6 * LENGTH)


@pytest.mark.parametrize("family", ["timed", "geometric"])
def test_loss_with_a_normalised_measure_is_that_of_masked_diffusion(family):
    model, batch = with_logits(family, normalised_logits), MODELS.windows()
    step = Step(5, 0.0, 0)
    expected, penalty = masked_diffusion_loss(
        model, batch, step, normalised_logits(batch.window, torch.zeros(6))
    )
    assert float(penalty) < 1e-12
    assert_close(ADAPTER.training_loss(model, batch, step).value.double(), expected, rtol=1e-6,
                 atol=0)  # fmt: skip


@pytest.mark.parametrize("family", ["timed", "geometric"])
def test_loss_of_any_measure_lies_above_by_the_penalty_on_its_mass(family):
    model, batch = with_logits(family, random_logits), MODELS.windows()
    step = Step(5, 0.0, 0)
    expected, penalty = masked_diffusion_loss(
        model, batch, step, random_logits(batch.window, torch.zeros(6))
    )
    assert float(penalty) > 0.01
    found = ADAPTER.training_loss(model, batch, step).value.double()
    assert_close(found, expected + penalty, rtol=1e-6, atol=0)


def test_logits_at_clean_positions_change_nothing():
    seen = []

    def spoiled(tokens: Tensor, time: Tensor) -> Tensor:
        seen.append(tokens)
        logits = random_logits(tokens, time)
        return torch.where((tokens == VOCAB)[..., None], logits, 30.0)

    batch = MODELS.windows()
    nats = [
        ADAPTER.nll(with_logits("absorbing", form), batch, Draw(2)).nats
        for form in (random_logits, spoiled)
    ]
    assert bool((seen[0] == VOCAB).any())
    assert torch.equal(*nats)


# -- the toy source, exact scores -----------------------------------------------------------------


def toy_logits(model_family: str, tokens: Tensor, sigma: Tensor) -> Tensor:
    """a of a network that knows the toy, for windows with one context token."""
    if model_family == "absorbing":
        rows = exact.masked_log_measure(tokens[:, 1:]) + math.log(toy.VOCAB_SIZE)
    else:
        rows = exact.uniform_log_scores_of(tokens[:, 1:], sigma.double().expand(len(tokens)))
    return torch.cat([torch.zeros(len(tokens), 1, 3, dtype=torch.float64), rows], dim=1)


TOY_CASES = [
    ("absorbing", {}),
    ("absorbing", {"noise_eps": 0.09, "time_sampler": "t"}),
    ("absorbing", {"noise_schedule": "geometric", "sigma_min": 0.5, "sigma_max": 1.0}),
    ("absorbing", {"time_sampler": "t", "t_min": 0.4}),
    ("uniform", {}),
    ("uniform", {"sigma_min": 0.2, "sigma_max": 2.0}),
    ("uniform", {"noise_schedule": "loglinear", "noise_eps": 0.09, "t_min": 0.4}),
]


@pytest.mark.parametrize(("family", "changes"), TOY_CASES, ids=str)
def test_score_of_exact_scores_is_the_entropy_whatever_the_settings(family, changes):
    """The alarm of a bound that is none: noise that does not reach its ends, a term left out. With
    noise_eps=0.1 and no prior, masks would read 2.28 nats, below the entropy of 2.586."""
    model = with_logits(
        family, lambda x, sigma: toy_logits(family, x, sigma), toy.VOCAB_SIZE, **changes
    )
    batch = toy.batch(2000, seed=5)
    with torch.no_grad():
        nats = torch.stack([ADAPTER.nll(model, batch, Draw(0, n)).nats for n in range(3)])
    truth = -toy.joint()[toy.code(batch.tokens[:, 1:])].log()
    gaps = nats.mean(0) - truth
    error = float(gaps.std()) / math.sqrt(len(gaps))
    # With a decoder the integral ends at sigma_min, where paths no longer tell x_0 exactly.
    slack = 0.2 if changes.get("sigma_min") == 0.2 else 0.0
    assert -3 * error < float(gaps.mean()) < 3 * error + slack
    assert error < 0.1


@pytest.mark.parametrize("sigma", [1e-6, 12.0, 20.0])
@pytest.mark.parametrize("family", ["absorbing", "uniform", "denoiser"])
def test_extreme_noise_leaves_float32_losses_and_gradients_finite(family, sigma):
    model = MODELS.make(family)
    with torch.no_grad():
        model.net.head.bias.normal_(std=5.0)
    noise = torch.tensor([sigma], dtype=torch.float64)
    batch = MODELS.windows(1)
    context, tokens = batch.window[:, :1], batch.window[:, 1:]
    if family == "absorbing":
        masked = torch.arange(LENGTH)[None] < 3
        weight = 1 / torch.expm1(noise)
        draw = MaskDraw(masked, -torch.expm1(-noise), weight)
        loss = network_draw_sum(
            model.net, context, VOCAB, tokens, draw, lambda t: model.told(-torch.log1p(-t)),
            normalised=False,
        )  # fmt: skip
    else:
        corrupted = torch.where(torch.arange(LENGTH)[None] < 3, (tokens + 1) % VOCAB, tokens)
        sums = model.score_sums(corrupted, tokens, noise, context)
        loss = uniform.score_entropy(sums, corrupted == tokens, noise, VOCAB).sum()
    assert bool(loss.isfinite())
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_inspection_shows_what_the_bound_is_made_of():
    """Its means are the score: with masks also that of the normalised model, which is never above;
    under uniform noise the terms."""
    batch, vocabulary = MODELS.windows(60), ToyVocabulary(VOCAB)
    found = ADAPTER.inspect(MODELS.make("absorbing").eval(), [batch], vocabulary)
    raw, normalised = (
        found.metrics[f"{name}_nats_per_token"] for name in ("bound", "bound_normalised")
    )
    assert normalised < raw
    (curves,) = found.pictures
    for one, two in zip(curves.series["bound"], curves.series["bound_normalised"], strict=True):
        assert one[1] > two[1]
    assert found.metrics["nats_one_masked"] > 0
    masks = torch.full_like(batch.tokens[:, 1:], VOCAB)
    everything = torch.cat([batch.tokens[:, :1], masks], 1)
    model = MODELS.make("absorbing").eval()
    noise = torch.full((60,), float("inf"))
    with torch.no_grad():
        log_u = model.log_measure(model.features(everything, noise)[:, 1:])
    true = log_u.gather(-1, batch.tokens[:, 1:, None])[..., 0]
    entropy = log_u.exp().sum(-1) - 1 - true
    assert found.metrics["nats_all_masked"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    in_bits = found.metrics["bound_bits_per_byte"]  # every token of the toy vocabulary is one byte
    assert in_bits == pytest.approx(raw / math.log(2), rel=1e-9)

    model = MODELS.make("uniform", sigma_min=0.01, sigma_max=2.0).eval()
    found = ADAPTER.inspect(model, [batch], vocabulary)
    prior = found.metrics["prior_nats_per_token"]
    assert prior == pytest.approx(uniform.prior_kl(model.schedule, VOCAB), rel=1e-6)
    assert found.metrics["reconstruction_nats_per_token"] > 0.01
    assert found.metrics["integral_nats_per_token"] > 1.0
