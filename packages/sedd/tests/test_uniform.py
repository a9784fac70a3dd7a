"""The uniform process: its law, its score entropy, its bound on the toy source, its way back."""

from __future__ import annotations

import math

import pytest
import torch
import toy_scores as exact
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.diffusion.schedules import Geometric, Linear
from nanozoo_core.ops.log_mixture import log_mixture_reference
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.statistics import chi_square, chi_square_limit
from nanozoo_sedd import uniform

SIZE = 5
SIGMAS = [1e-6, 0.01, 0.3, 1.0, 4.0, 12.0]
each_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def rates(size: int = SIZE) -> Tensor:
    """R: to each other value at rate 1 / V."""
    return torch.full((size, size), 1 / size, dtype=torch.float64) - torch.eye(size).double()


def pairs(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """All (x_0, x_t), each (1, size^2)."""
    x0, xt = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T
    return x0[None], xt[None]


def ratios(x0: Tensor, xt: Tensor, sigma: float, size: int = SIZE) -> Tensor:
    """r_y = p(y | x_0) / p(x_t | x_0), (1, P, V)."""
    matrix = torch.matrix_exp(sigma * rates(size))
    return matrix[x0] / matrix[x0, xt][..., None]


def random_log_scores(xt: Tensor, size: int = SIZE) -> Tensor:
    made = torch.randn(*xt.shape, size, generator=seeded_generator(1), dtype=torch.float64)
    return made.scatter(-1, xt[..., None], 0.0)


def entropy(log_scores: Tensor, x0: Tensor, xt: Tensor, sigma: float) -> Tensor:
    size = log_scores.shape[-1]
    noise = torch.full((len(x0),), sigma, dtype=torch.float64)
    return uniform.score_entropy(exact.sums_of(log_scores, xt, x0), xt == x0, noise, size)


# -- the process ----------------------------------------------------------------------------------


@each_sigma
def test_flow_is_the_exponential_of_the_rates(sigma):
    found = uniform.flow(torch.eye(SIZE, dtype=torch.float64), sigma)
    assert_close(found, torch.matrix_exp(sigma * rates()), rtol=0, atol=1e-12)
    assert_close(found.sum(1), torch.ones(SIZE).double(), rtol=0, atol=1e-14)


def test_flows_add_up_and_undo_each_other():
    values = torch.rand(4, SIZE, generator=seeded_generator(2), dtype=torch.float64)
    both = uniform.flow(uniform.flow(values, 0.7), 0.9)
    assert_close(both, uniform.flow(values, 1.6), rtol=0, atol=1e-14)
    assert_close(uniform.flow(uniform.flow(values, 3.0), -3.0), values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 1.5, 12.0])
def test_corrupted_tokens_follow_the_flow(sigma):
    num_draws = 50_000
    tokens = torch.full((num_draws, 1), 3)
    uniforms = torch.rand(num_draws, 1, generator=seeded_generator(3), dtype=torch.float64)
    noise = torch.full((num_draws,), sigma, dtype=torch.float64)
    drawn = uniform.corrupt(tokens, noise, uniforms, SIZE)
    counts = torch.bincount(drawn.flatten(), minlength=SIZE)
    law = torch.matrix_exp(sigma * rates())[3]
    assert chi_square(counts, law) < chi_square_limit(SIZE - 1)


@each_sigma
def test_log_ratio_is_that_of_the_transition(sigma):
    row = uniform.flow(torch.eye(SIZE, dtype=torch.float64), sigma)[0]
    found = uniform.log_ratio(torch.tensor(sigma, dtype=torch.float64), SIZE)
    assert_close(found.exp(), row[1] / row[0], rtol=1e-10, atol=0)


# -- score entropy --------------------------------------------------------------------------------


@each_sigma
def test_score_entropy_is_its_definition(sigma):
    """sum over y != x_t of rate(y -> x_t) (s - r log s + r (log r - 1)), with explicit matrices."""
    x0, xt = pairs()
    log_s, r = random_log_scores(xt), ratios(x0, xt, sigma)
    terms = rates()[:, xt].movedim(0, -1) * (log_s.exp() - r * log_s + r * (r.log() - 1))
    expected = terms.scatter(-1, xt[..., None], 0.0).sum(-1)
    # 1/rho is V / sigma at small sigma, and everything is of its size.
    assert_close(entropy(log_s, x0, xt, sigma), expected, rtol=1e-9, atol=1e-9)
    assert float(expected.min()) >= 0


@each_sigma
def test_score_entropy_is_zero_and_flat_at_the_true_ratios(sigma):
    x0, xt = pairs()
    log_s = ratios(x0, xt, sigma).log().scatter(-1, xt[..., None], 0.0).requires_grad_()
    loss = entropy(log_s, x0, xt, sigma)
    scale = float(ratios(x0, xt, sigma).max())
    assert float(loss.detach().abs().max()) < 1e-12 * scale * max(1.0, math.log(scale))
    (slope,) = torch.autograd.grad(loss.sum(), log_s)
    slope = slope.scatter(-1, xt[..., None], 0.0)  # the own entry is a constant
    assert float(slope.abs().max()) < 1e-12 * scale


@pytest.mark.parametrize("sigma", [0.01, 0.3, 4.0])
def test_best_scores_are_the_posterior_mean_of_the_ratios(sigma):
    """Under a distribution of x_0 the expected loss is flat there, and larger all around."""
    x0 = torch.arange(SIZE)[None]
    xt = torch.full_like(x0, 2)
    prior = torch.rand(SIZE, generator=seeded_generator(4), dtype=torch.float64)
    posterior = prior * torch.matrix_exp(sigma * rates())[:, 2]
    posterior = posterior / posterior.sum()
    mean = posterior @ ratios(x0, xt, sigma)[0]
    marginal = prior @ torch.matrix_exp(sigma * rates())
    assert_close(mean, marginal / marginal[2], rtol=1e-10, atol=0)

    def expected_loss(log_s: Tensor) -> Tensor:
        log_s = log_s.scatter(0, torch.tensor([2]), 0.0)
        return posterior @ entropy(log_s.expand(1, SIZE, SIZE), x0, xt, sigma)[0]

    best = mean.log().requires_grad_()
    (slope,) = torch.autograd.grad(expected_loss(best), best)
    assert float(slope.abs().max()) < 1e-8
    for seed in range(5):
        step = 0.1 * torch.randn(SIZE, generator=seeded_generator(5, seed)).double()
        with torch.no_grad():
            assert float(expected_loss(best + step)) > float(expected_loss(best))


@pytest.mark.parametrize("sigma", [1e-6, 0.3, 20.0])
def test_scores_of_a_denoiser_are_the_mean_ratios_under_its_posterior(sigma):
    """P is proportional to p(x_0 | others) p(x_t | x_0); both forms of s, and their sums."""
    x0, xt = pairs()
    logits = torch.randn(1, SIZE * SIZE, SIZE, generator=seeded_generator(6), dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    matrix = torch.matrix_exp(sigma * rates())
    posterior = (log_p + matrix[:, xt].movedim(0, -1).log()).softmax(-1)  # (1, P, V)
    every = matrix[None, None] / matrix[:, xt].movedim(0, -1)[..., None]  # r_y for each x_0
    scores = torch.einsum("bpk,bpky->bpy", posterior, every)
    spread = torch.tensor([[SIZE / math.expm1(sigma)]], dtype=torch.float64)
    parts = log_mixture_reference(
        logits[0],
        torch.eye(SIZE, dtype=torch.float64),
        torch.zeros(SIZE, dtype=torch.float64),
        xt[0],
        x0[0],
        spread[0].expand(SIZE * SIZE),
    )
    found = uniform.mixture_sums(*(part[None] for part in parts), spread, SIZE)
    expected = exact.sums_of(scores.log(), xt, x0)
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted, rtol=1e-7, atol=1e-7)


def test_both_tables_of_exact_scores_agree():
    """The ratios of enumerated marginals, and the mean ratios given the other tokens."""
    windows = exact.SEQUENCES
    found = exact.uniform_log_scores_of(windows, torch.full((27,), 0.8, dtype=torch.float64))
    assert_close(found, exact.uniform_log_scores(0.8), rtol=0, atol=1e-12)


def test_denoiser_with_exact_predictions_has_the_exact_scores():
    """s_y = (1 + h p_y) / (1 + h p_own), p being x_i given the other tokens of x_t."""
    sigma = 0.8
    x = exact.SEQUENCES
    per_token = exact.transition(sigma)[x[:, None], x[None]]  # (x_0, x_t, 3)
    others = torch.stack([per_token[..., rest].prod(-1) for rest in ([1, 2], [0, 2], [0, 1])])
    is_symbol = torch.nn.functional.one_hot(x, 3).double()
    mass = torch.einsum("k,ikn,kiy->niy", toy.joint(), others, is_symbol)
    p = mass / mass.sum(-1, keepdim=True)
    spread = 3 / math.expm1(sigma)
    scores = (1 + spread * p) / (1 + spread * p.gather(-1, x[..., None]))
    assert_close(scores.log(), exact.uniform_log_scores(sigma), rtol=0, atol=1e-12)


# -- the bound on the toy source ------------------------------------------------------------------


def enumerated_bound(log_scores_at, num_times: int = 40) -> Tensor:
    """The integral for each x_0 (27,), over times and all 27 x_t, with alpha = 1 - t."""
    total = torch.zeros(27, dtype=torch.float64)
    x0 = exact.SEQUENCES[:, None].expand(27, 27, 3).reshape(1, -1)
    xt = exact.SEQUENCES[None].expand(27, 27, 3).reshape(1, -1)
    schedule = Linear()
    for t, weight in zip(*exact.smooth_times(num_times), strict=True):
        sigma = float(schedule.sigma(t))
        table = log_scores_at(sigma)[None].expand(27, 27, 3, 3).reshape(1, -1, 3)
        losses = entropy(table, x0, xt, sigma).view(27, 27, 3).sum(-1)
        total += weight * schedule.sigma_rate(t) * (exact.forward_law(sigma) * losses).sum(1)
    return total


def test_exact_scores_make_the_bound_tight_for_every_sequence():
    """A path of the exact reverse process tells its x_0; 2.2e-6 is the quadrature's error."""
    bound = enumerated_bound(exact.uniform_log_scores)
    assert_close(bound, -toy.joint().log(), rtol=0, atol=4e-6)
    assert float(toy.joint() @ bound) == pytest.approx(2.585838, abs=1e-6)


def test_scores_of_one_make_the_bound_ln_v_for_every_sequence():
    """The model's paths are then those of the noise itself, whatever x_0 is."""
    zeros = torch.zeros(27, 3, 3, dtype=torch.float64)
    bound = enumerated_bound(lambda sigma: zeros, num_times=120)
    assert_close(bound, torch.full_like(bound, 3.295837), rtol=0, atol=1e-6)


def test_wrong_scores_only_raise_the_bound():
    def tilted(sigma: float) -> Tensor:
        table = exact.uniform_log_scores(sigma)
        tilt = torch.randn(table.shape, generator=seeded_generator(7), dtype=torch.float64)
        return (table + 0.2 * tilt).scatter(-1, exact.SEQUENCES[..., None], 0.0)

    assert float(toy.joint() @ enumerated_bound(tilted)) > toy.ENTROPY + 0.01


SCHEDULES = [Linear(1e-3), Linear(0.09), Geometric(1e-4, 20.0), Geometric(0.02, 3.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_all_terms_together_are_ln_v_when_nothing_is_known(schedule):
    """Scores of 1 at every time: integral, prior and reconstruction, on any schedule."""
    x0, xt = pairs()
    zeros = torch.zeros(1, SIZE * SIZE, SIZE, dtype=torch.float64)
    integral = 0.0
    for t, weight in zip(*exact.smooth_times(200), strict=True):
        sigma = float(schedule.sigma(t))
        law = exact.transition(sigma, SIZE)[x0, xt] / SIZE
        losses = (law * entropy(zeros, x0, xt, sigma)).sum()
        integral += float(weight * schedule.sigma_rate(t) * losses)
    first = uniform.least_sigma(schedule)
    decoded = uniform.decoder_probs(torch.ones(SIZE, SIZE).double(), torch.arange(SIZE), first)
    recon = -float((torch.xlogy(exact.transition(first, SIZE), decoded.T)).sum()) / SIZE
    if first == 0:
        recon = 0.0
    total = integral + uniform.prior_kl(schedule, SIZE) + recon
    assert total == pytest.approx(math.log(SIZE), abs=5e-6)


def test_prior_is_the_divergence_from_uniform():
    for schedule in SCHEDULES:
        last = schedule.sigma(torch.tensor(1.0, dtype=torch.float64))
        row = torch.matrix_exp(float(last) * rates())[0]
        expected = float((row * (row * SIZE).log()).sum())
        assert uniform.prior_kl(schedule, SIZE) == pytest.approx(expected, abs=1e-12)
    assert uniform.prior_kl(Geometric(), 50257) < 1e-12
    assert uniform.prior_kl(Linear(1e-3), 50257) == pytest.approx(0.003, abs=3e-4)


# -- going back -----------------------------------------------------------------------------------


def marginal_scores(prior: Tensor, sigma: float) -> Tensor:
    """Exact scores of one token, (x_t, y)."""
    marginal = prior @ torch.matrix_exp(sigma * rates())
    return marginal[None] / marginal[:, None]


@pytest.mark.parametrize(("sigma", "change"), [(0.5, 0.1), (6.0, 5.9), (1e-3, 1e-3)])
def test_tweedie_step_of_exact_scores_is_the_true_reverse_step(sigma, change):
    prior = torch.rand(SIZE, generator=seeded_generator(9), dtype=torch.float64)
    prior = prior / prior.sum()
    own = torch.arange(SIZE)
    found = uniform.tweedie_weights(marginal_scores(prior, sigma), own, change)
    before = prior @ torch.matrix_exp((sigma - change) * rates())
    joint = before[None] * torch.matrix_exp(change * rates())[:, own].T  # (x_t, x_s)
    expected = joint / joint.sum(1, keepdim=True)
    assert_close(found / found.sum(1, keepdim=True), expected, rtol=0, atol=1e-10)
    assert_close(found.sum(1), torch.ones(SIZE).double(), rtol=0, atol=1e-10)


def test_decoder_of_exact_scores_is_the_posterior():
    prior = torch.tensor([0.5, 0.2, 0.2, 0.07, 0.03], dtype=torch.float64)
    sigma = 0.3
    found = uniform.decoder_probs(marginal_scores(prior, sigma), torch.arange(SIZE), sigma)
    joint = prior[None] * torch.matrix_exp(sigma * rates())
    assert_close(found, joint / joint.sum(1, keepdim=True), rtol=0, atol=2e-6)


def test_decoder_of_wrong_scores_is_a_distribution_without_zeros():
    """One score far above the others makes the step's weights negative elsewhere."""
    scores = torch.ones(SIZE, SIZE, dtype=torch.float64)
    scores[:, 4] = 1e9
    scores[4, 4] = 1.0
    own = torch.arange(SIZE)
    weights = uniform.tweedie_weights(scores, own, 1e-4)
    assert float(weights[:4, :4].max()) == 0.0
    probs = uniform.decoder_probs(scores, own, 1e-4)
    assert_close(probs.sum(1), torch.ones(SIZE).double(), rtol=0, atol=1e-12)
    assert float(probs.min()) >= 0.9e-6 / SIZE


def test_euler_step_is_the_tweedie_step_to_first_order():
    prior = torch.rand(SIZE, generator=seeded_generator(10), dtype=torch.float64)
    own, scores = torch.arange(SIZE), marginal_scores(prior / prior.sum(), 0.5)
    gaps = []
    for change in (1e-2, 1e-3):
        euler = uniform.euler_weights(scores, own, change)
        assert_close(euler.sum(1), torch.ones(SIZE).double(), rtol=0, atol=1e-12)
        gaps.append(float((euler - uniform.tweedie_weights(scores, own, change)).abs().max()))
    assert gaps[1] < 0.02 * gaps[0]


def test_euler_jumps_that_exceed_certainty_are_rescaled():
    scores = torch.ones(SIZE, SIZE, dtype=torch.float64)
    scores[0, 1] = 100.0
    weights = uniform.euler_weights(scores, torch.arange(SIZE), 1.0)
    assert_close(weights.sum(1), torch.ones(SIZE).double())
    assert float(weights[0, 0]) == 0.0
    assert float(weights[0, 1] / weights[0, 2]) == pytest.approx(100.0)
