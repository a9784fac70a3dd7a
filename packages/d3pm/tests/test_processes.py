"""The corruption processes against their explicit matrices, in float64."""

from __future__ import annotations

import math

import process_cases as cases
import pytest
import torch
from torch.testing import assert_close

from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.statistics import chi_square_limit
from nanozoo_d3pm import graph, schedules
from nanozoo_d3pm.graph_transitions import Clusters, Spectral
from nanozoo_d3pm.transitions import Absorbing, Band, Gaussian, Uniform

EXACT = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture(params=cases.NAMES)
def process(request):
    return cases.make(request.param)


def test_rows_sum_to_one(process):
    for t in (0, 1, 7, cases.last_time(process)):
        matrix = cases.cumulative(process, t)
        assert_close(matrix.sum(1), torch.ones_like(matrix[0]), **EXACT)
        assert matrix.min() >= 0


def test_cumulative_matrix_is_the_product_of_steps(process):
    product = torch.eye(process.num_states, dtype=torch.float64)
    for t in range(1, cases.last_time(process) + 1):
        product = product @ cases.between(process, t - 1, t)
        assert_close(cases.cumulative(process, t), product, **EXACT)


def test_skipping_steps_is_the_product_of_those_skipped(process):
    product = torch.eye(process.num_states, dtype=torch.float64)
    for t in range(4, 17):
        product = product @ cases.between(process, t - 1, t)
    assert_close(cases.between(process, 3, 16), product, **EXACT)


def test_column_is_the_column_of_the_cumulative_matrix(process):
    columns = process.column(cases.states(process), torch.tensor([9]), torch.float64)[0]
    assert_close(columns, cases.cumulative(process, 9).T[:, : process.vocab_size], **EXACT)


@pytest.mark.parametrize(
    "name", ["gaussian", "band-cosine", "spectral", "clusters", "uniform-linear"]
)
def test_matrix_is_symmetric(name):
    process = cases.make(name)
    assert_close(cases.between(process, 4, 5), cases.between(process, 4, 5).T, **EXACT)
    assert_close(cases.cumulative(process, 11).sum(0), torch.ones(12).double(), **EXACT)


def test_posterior_marginalises_to_the_earlier_distribution(process):
    t = 8
    step, before = cases.between(process, t - 1, t), cases.cumulative(process, t - 1)
    now = cases.cumulative(process, t)
    posterior = before[:, None, :] * step.T[None] / now[:, :, None]  # (k, i, j)
    posterior = posterior.nan_to_num()
    possible = (now > 0).double()
    assert_close(posterior.sum(-1), possible, **EXACT)
    assert_close(torch.einsum("ki,kij->kj", now, posterior), before, **EXACT)


def test_log_mix_is_the_product_with_the_cumulative_matrix(process):
    log_probs = cases.random_log_probs(1, 6, process.vocab_size)
    for t in (0, 1, 10, cases.last_time(process)):
        expected = log_probs.exp() @ cases.cumulative(process, t)[: process.vocab_size]
        mixed = process.log_mix(log_probs, torch.tensor([t])).exp()
        assert_close(mixed, expected, **EXACT)


def test_graph_process_is_the_exponential_of_its_rate():
    process = cases.make("spectral")
    assert isinstance(process, Spectral)
    rate = (process.eigenvectors * process.eigenvalues) @ process.eigenvectors.T
    assert_close(rate.sum(1), torch.zeros(12).double(), **EXACT)
    expected = torch.linalg.matrix_exp(process.tau[5] * rate)
    assert_close(cases.cumulative(process, 5), expected, **EXACT)


def test_clusters_are_the_exponential_of_their_rate():
    process = cases.make("clusters")
    assert isinstance(process, Clusters)
    cluster = process._places() // process.cluster_size
    own = (cluster[:, None] == cluster).double() / process.cluster_size
    everyone = torch.full((12, 12), 1 / 12, dtype=torch.float64)
    eye = torch.eye(12, dtype=torch.float64)
    rate = (own - eye) + process.uniform_rate * (everyone - eye)
    expected = torch.linalg.matrix_exp(process.tau[5] * rate)
    assert_close(cases.cumulative(process, 5), expected, **EXACT)


def test_ragged_vocabulary_is_padded_with_ids_that_are_never_predicted():
    process = cases.make("clusters-mask", size=10)
    assert (process.num_states, process.mask_id, process.num_input_ids) == (12, 12, 13)
    log_probs = cases.random_log_probs(1, 4, 10)
    now, start = torch.tensor([1]), torch.tensor([0])
    reverse = process.log_reverse(log_probs, torch.tensor([[0, 11, 3, 9]]), start, now)
    assert float(reverse[..., 10:].exp().max()) == 0.0


def test_terminal_mask_hides_everything():
    process = cases.make("spectral-mask")
    t = torch.tensor([20])
    x = process.corrupt(torch.arange(12)[None], t, torch.rand(1, 12, dtype=torch.float64))
    assert bool((x == 12).all())
    assert float(process.column(x, t, torch.float64).min()) == 1.0


@pytest.mark.parametrize("t", [1, 9, 19])
def test_corrupted_tokens_follow_the_matrix(process, t):
    """Chi-square of 4000 draws from each of two tokens, at the 1e-4 level."""
    num_draws, tokens = 4000, (2, 7)
    x0 = torch.tensor(tokens)[:, None].expand(-1, num_draws)
    uniforms = torch.rand(2, num_draws, generator=seeded_generator(4, t), dtype=torch.float64)
    xt = process.corrupt(x0, torch.full((2,), t), uniforms)
    for k, drawn in zip(tokens, xt, strict=True):
        expected = cases.cumulative(process, t)[k] * num_draws
        counts = torch.bincount(drawn, minlength=process.num_states).double()
        assert float(counts[expected == 0].sum()) == 0
        common = expected > 1
        statistic = ((counts - expected) ** 2 / expected)[common].sum()
        degrees = max(int(common.sum()) - 1, 1)
        assert float(statistic) < chi_square_limit(degrees)


def test_reverse_step_is_bayes_rule_on_the_joint(process):
    """p(x_s | x_t) is proportional to sum_k p_k q(x_s, x_t | x_0 = k), skipping steps or not."""
    log_probs = cases.random_log_probs(1, process.num_states, process.vocab_size)
    for s, t in ((5, 6), (3, 16)):
        start = torch.tensor([s])
        reverse = process.log_reverse(
            log_probs, cases.states(process), start, torch.tensor([t])
        ).exp()
        before = cases.cumulative(process, s)[: process.vocab_size]
        joint = torch.einsum(
            "ik,kj,ji->ij", log_probs[0].exp(), before, cases.between(process, s, t)
        )
        assert_close(reverse[0], joint / joint.sum(1, keepdim=True), rtol=0, atol=1e-10)


def test_schedules_fall_from_one_to_their_stated_end():
    linear, cosine = schedules.linear_log_keep(1000).exp(), schedules.cosine_log_keep(1000).exp()
    for keep in (linear, cosine):
        assert float(keep[0]) == 1.0
        assert bool((keep.diff() < 0).all())
    assert float(linear[-1]) == 0.0
    assert float(cosine[-1]) == pytest.approx(1.6e-6, rel=0.05)
    assert float(Absorbing(12, 1000, "cosine").log_keep[-1]) == -math.inf


def test_linear_absorbing_schedule_is_one_over_the_steps_left():
    log_keep = schedules.linear_log_keep(50)
    beta = -torch.expm1(log_keep.diff())
    assert_close(beta, 1 / (50 - torch.arange(1, 51) + 1).double(), **EXACT)


def test_uniform_schedule_removes_information_evenly():
    process = cases.make("uniform-mutual_info", 100)
    assert isinstance(process, Uniform)
    information = schedules.uniform_information(cases.unigram(), process.log_keep)
    assert_close(information, 1 - torch.arange(101).double() / 100, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["spectral-mask", "clusters-mask"])
def test_graph_schedule_removes_information_evenly(name):
    process = cases.make(name, 50)
    unigram = cases.unigram()
    for t in (1, 10, 25, 40, 49):
        matrix = cases.cumulative(process, t)
        gained = schedules.entropy(unigram @ matrix) - unigram @ schedules.entropy(matrix)
        assert float(gained / schedules.entropy(unigram)) == pytest.approx(1 - t / 50, abs=5e-3)


def test_cosine_schedule_is_the_papers():
    """1 - beta_t = f(t) / f(t - 1), at least 0.001, f(t) = cos((t / T + 0.008) / 1.008 pi / 2)."""
    keep, expected = schedules.cosine_log_keep(20).exp().tolist(), [1.0]
    f = [math.cos((t / 20 + 0.008) / 1.008 * math.pi / 2) for t in range(21)]
    for t in range(1, 21):
        expected.append(expected[-1] * max(f[t] / f[t - 1], 0.001))
    assert keep == pytest.approx(expected, rel=1e-12)


def test_gaussian_steps_are_the_papers():
    """[Q_t]_ij = exp(-4 |i - j|^2 / ((V - 1)^2 beta_t)) over its sum for all distances of both
    signs (appendix A.2.3), betas from 1e-4 to 0.02 being those of 1000 steps."""
    size, num_timesteps = 7, 20
    process = cases.make("gaussian-mask", num_timesteps, size)
    for t in (1, 8, 19):
        beta = 1000 / num_timesteps * (1e-4 + (0.02 - 1e-4) * (t - 1) / (num_timesteps - 1))
        scale = -4 / ((size - 1) ** 2 * beta)
        total = sum(math.exp(scale * n**2) for n in range(1 - size, size))
        expected = torch.zeros(size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                if i != j:
                    expected[i, j] = math.exp(scale * (i - j) ** 2) / total
            expected[i, i] = 1 - expected[i].sum()
        assert_close(cases.between(process, t - 1, t), expected, **EXACT)


def test_band_steps_are_the_papers():
    """[Q_t]_ij = beta_t / V where 0 < |i - j| <= v, here with beta_t = 1 / (T - t + 1)."""
    process = Band(7, 20, width=2, noise_schedule="linear", dtype=torch.float64)
    for t in (1, 8, 19):
        expected = torch.zeros(7, 7, dtype=torch.float64)
        for i in range(7):
            for j in range(7):
                if 0 < abs(i - j) <= 2:
                    expected[i, j] = 1 / (20 - t + 1) / 7
            expected[i, i] = 1 - expected[i].sum()
        assert_close(cases.between(process, t - 1, t), expected, **EXACT)


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_band_as_wide_as_the_vocabulary_is_the_uniform_process(noise_schedule):
    settings = {"noise_schedule": noise_schedule, "terminal_mask": False, "dtype": torch.float64}
    band = Band(9, 20, width=8, **settings)
    uniform = Uniform(9, 20, noise_schedule)
    for t in (1, 10, 20):
        assert_close(cases.cumulative(band, t), cases.cumulative(uniform, t), **EXACT)


def test_narrow_band_reaches_its_end_by_a_mask_alone():
    with pytest.raises(ConfigError, match="nats per token"):
        Band(64, 20, width=2, noise_schedule="cosine", terminal_mask=False)


def test_rates_of_a_small_graph_are_counted_by_hand():
    """On a half circle 0 and 1 are each other's nearest, and 2's nearest is 1: with one neighbour
    the edges weigh 1, 1/2 and nothing."""
    angles = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    rates = graph.neighbor_rates(torch.stack([angles.cos(), angles.sin()], dim=1), 1)
    expected = torch.tensor([[-1, 1, 0], [1, -1.5, 0.5], [0, 0.5, -0.5]], dtype=torch.float64)
    assert_close(rates, expected, **EXACT)


def test_gaussian_scale_leaves_the_prior_small_at_few_steps():
    process = Gaussian(
        256, 100, beta_min=1e-4, beta_max=0.02, terminal_mask=False, dtype=torch.float64
    )
    assert 0 <= float(process.prior.max()) < 1e-5


def test_prior_term_is_reported_for_an_inexact_end():
    process = Uniform(12, 1, "cosine")
    keep = float(process.log_keep[-1].exp())
    other = (1 - keep) / 12
    same = keep + other
    expected = math.log(12) + same * math.log(same) + 11 * other * math.log(other)
    assert float(process.prior_kl(torch.zeros(1, 1))) == pytest.approx(expected, abs=1e-12)
    assert expected > 1e-7


def test_process_that_does_not_mix_is_refused():
    with pytest.raises(ConfigError, match="nats per token"):
        Gaussian(64, 2, beta_min=1e-6, beta_max=1e-5, terminal_mask=False)


def test_disconnected_graph_is_refused_without_a_way_out():
    vectors = torch.eye(2, dtype=torch.float64).repeat_interleave(6, 0)
    vectors += 0.01 * torch.rand(12, 2, generator=seeded_generator(5), dtype=torch.float64)
    options = {"noise_schedule": "mutual_info", "num_neighbors": 2, "terminal_mask": False}
    with pytest.raises(ConfigError, match="components"):
        Spectral(12, 20, uniform_rate=0.0, **options).fit(cases.unigram(), vectors)
    Spectral(12, 20, uniform_rate=0.01, **options).fit(cases.unigram(), vectors)
