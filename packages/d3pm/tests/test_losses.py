"""The bound's terms: against brute force, on the toy source, and their known values."""

from __future__ import annotations

import itertools
import math

import process_cases as cases
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.diffusion.bounds import DiscreteCounts
from nanozoo_core.diffusion.sampling import choose_masked
from nanozoo_core.ops.log_mixture import log_mixture_reference
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.exact import denoiser_loss, exact_masked_bound
from nanozoo_d3pm.losses import (
    UniformRates,
    general_kl,
    hybrid_loss,
    posterior_cross_entropy,
    uniform_kl_and_cross_entropy,
)
from nanozoo_d3pm.transitions import Absorbing, Transition, Uniform


@pytest.fixture(params=cases.NAMES)
def process(request):
    return cases.make(request.param)


def all_pairs(process: Transition, t: int) -> tuple[Tensor, Tensor]:
    """Every (x_0, x_t) that is possible at t, each (1, N)."""
    possible = cases.cumulative(process, t)[: process.vocab_size] > 0
    x0, xt = possible.nonzero().T
    return x0[None], xt[None]


@pytest.mark.parametrize("t", [1, 2, 13])
def test_general_kl_equals_brute_force(process, t):
    x0, xt = all_pairs(process, t)
    log_probs = cases.random_log_probs(1, x0.shape[1], process.vocab_size)
    before, step = cases.cumulative(process, t - 1), cases.between(process, t - 1, t)
    true = before[x0[0]] * step.T[xt[0]]
    model = (log_probs[0].exp() @ before[: process.vocab_size]) * step.T[xt[0]]
    true, model = (joint / joint.sum(1, keepdim=True) for joint in (true, model))
    expected = (torch.xlogy(true, true) - torch.xlogy(true, model)).sum(1)
    kl = general_kl(process, log_probs, x0, xt, torch.tensor([t]))[0]
    assert_close(kl, expected, rtol=0, atol=1e-10)


def test_first_step_is_the_reconstruction_term(process):
    x0, xt = all_pairs(process, 1)
    log_probs = cases.random_log_probs(1, x0.shape[1], process.vocab_size)
    t = torch.tensor([1])
    kl = general_kl(process, log_probs, x0, xt, t)
    reverse = process.log_reverse(log_probs, xt, torch.tensor([0]), t)
    assert_close(kl, -reverse.gather(-1, x0[..., None])[..., 0], rtol=0, atol=1e-10)


def test_terminal_step_is_a_kl_to_the_marginal():
    process = cases.make("spectral-mask")
    x0 = torch.arange(12)[None]
    xt = torch.full_like(x0, process.num_states)
    log_probs = cases.random_log_probs(1, 12, 12)
    before = cases.cumulative(process, 19)
    expected = (before * (before.log() - (log_probs[0].exp() @ before).log())).sum(1)
    kl = general_kl(process, log_probs, x0, xt, torch.tensor([20]))[0]
    assert_close(kl, expected, rtol=0, atol=1e-10)


def uniform_forms(process: Uniform, log_probs: Tensor, x0: Tensor, xt: Tensor, t: Tensor):
    """The one-reduction form, its inputs from the kernel's reference with an identity head."""
    size = process.vocab_size
    rates = UniformRates.at(process, t)
    own, true, total = log_mixture_reference(
        log_probs.flatten(0, 1),
        torch.eye(size, dtype=log_probs.dtype),
        torch.zeros(size, dtype=log_probs.dtype),
        xt.flatten(),
        x0.flatten(),
        rates.ratio.expand(x0.shape).flatten(),
    )
    shaped = (part.view(x0.shape) for part in (own, true, total))
    return uniform_kl_and_cross_entropy(rates, *shaped, xt == x0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "mutual_info"])
@pytest.mark.parametrize("t", [1, 2, 11, 20])
def test_uniform_one_reduction_form_equals_the_general_one(schedule, t):
    process = cases.make(f"uniform-{schedule}")
    x0, xt = all_pairs(process, t)
    log_probs = cases.random_log_probs(1, x0.shape[1], 12)
    times = torch.tensor([t])
    kl, ce = uniform_forms(process, log_probs, x0, xt, times)
    assert_close(kl, general_kl(process, log_probs, x0, xt, times), rtol=0, atol=3e-13)
    expected = posterior_cross_entropy(process, log_probs, x0, xt, times)
    assert_close(ce, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_absorbing_kl_is_a_weighted_cross_entropy(schedule):
    process = cases.make(f"absorbing-{schedule}")
    for t in (1, 7, 20):
        x0, xt = all_pairs(process, t)
        log_probs = cases.random_log_probs(1, x0.shape[1], 12)
        times = torch.tensor([t])
        masked = xt == 12
        losses = -log_probs.gather(-1, x0[..., None])[..., 0] * masked
        kl = general_kl(process, log_probs, x0, xt, times)
        assert_close(kl, process.weight(times) * losses, rtol=0, atol=1e-10)
        ce = posterior_cross_entropy(process, log_probs, x0, xt, times)
        assert_close(ce, losses, rtol=0, atol=1e-12)


def test_absorbing_weight_is_one_over_t():
    process = Absorbing(12, 50, "mutual_info")
    t = torch.arange(1, 51)
    assert_close(process.weight(t), 1 / t.double(), rtol=1e-12, atol=0)


# A graph needs a step before the mask; what moves to near ids needs several to come near its end.
FEWEST_STEPS = {
    **{"uniform": 1, "absorbing": 1, "spectral": 2, "clusters": 2},
    **{"gaussian": 20, "band": 20},
}


@pytest.mark.parametrize("extra_steps", [0, 3, 19])
@pytest.mark.parametrize("name", cases.NAMES)
def test_even_predictions_cost_ln_v(name, extra_steps):
    """With an even p the model's marginals are the process's own, so the bound is ln V exactly."""
    num_timesteps = FEWEST_STEPS[name.partition("-")[0]] + extra_steps
    process = cases.make(name, num_timesteps)
    log_probs = torch.full((1, 1, 12), -math.log(12), dtype=torch.float64)
    total = process.prior_kl(torch.tensor([[5]]))[0, 0]
    for t in range(1, num_timesteps + 1):
        chance = torch.zeros(process.num_input_ids, dtype=torch.float64)
        if process.terminal_mask and t == num_timesteps:
            chance[-1] = 1
        else:
            chance[: process.num_states] = cases.cumulative(process, t)[5]
        for xt in chance.nonzero()[:, 0].tolist():
            x0, now = torch.tensor([[5]]), torch.tensor([[xt]])
            kl = general_kl(process, log_probs, x0, now, torch.tensor([t]))
            total = total + chance[xt] * kl[0, 0]
    assert float(total) == pytest.approx(math.log(12), abs=1e-10)


# -- the toy source -----------------------------------------------------------------------------


def toy_keep(num_timesteps: int) -> Tensor:
    return 1 - torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps


@pytest.mark.parametrize(
    ("num_timesteps", "expected"),
    [
        (1, 3.112186),
        (2, 2.837457),
        (4, 2.708758),
        (8, 2.646575),
        (16, 2.616025),
        (64, 2.593349),
        (256, 2.587712),
    ],
)
def test_absorbing_bound_of_the_toy(num_timesteps, expected):
    loss = denoiser_loss(toy.masked_denoiser, toy.MASK_ID)
    bound = exact_masked_bound(loss, toy.sequences(), toy_keep(num_timesteps))
    assert float(toy.joint() @ bound) == pytest.approx(expected, abs=6e-7)


def test_absorbing_bound_of_the_toy_approaches_the_entropy():
    """T = 10^4 by the law of (k, t): its weights sum to L, and each k has one exact mean loss."""
    law = DiscreteCounts(toy_keep(10_000), toy.LENGTH)
    shares = law.weights.sum(1)  # (L,)
    loss = denoiser_loss(toy.masked_denoiser, toy.MASK_ID)
    total = 0.0
    for pattern in itertools.product([False, True], repeat=toy.LENGTH):
        k = sum(pattern)
        if k:
            masked = torch.tensor(pattern).expand(27, -1)
            mean = loss(toy.sequences(), masked, torch.zeros(27)).sum(1) / k
            total += toy.LENGTH * shares[k - 1] / math.comb(3, k) * float(toy.joint() @ mean)
    assert float(total) == pytest.approx(toy.ENTROPY, abs=1e-4)
    assert float(total) > toy.ENTROPY


def toy_uniform(num_timesteps: int) -> Uniform:
    return Uniform(toy.VOCAB_SIZE, num_timesteps, "linear")


def toy_tables(process: Uniform, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every x_t (27, 3): q(x_t | x_0) (27, 27), and log-tables (27, 3, V) of x_0 given the
    other tokens of x_t, and given all of them."""
    x = toy.sequences()
    matrix = cases.cumulative(process, t)
    per_token = matrix[x[:, None, :], x[None, :, :]]  # (x_0, x_t, 3)
    symbol = torch.nn.functional.one_hot(x, toy.VOCAB_SIZE).double()  # (x_0, 3, V)
    tables = []
    for leave_out in (True, False):
        weights = torch.ones(27, 27, 3, dtype=torch.float64)
        for position in range(3):
            others = [i for i in range(3) if not (leave_out and i == position)]
            weights[:, :, position] = per_token[:, :, others].prod(-1)
        mass = torch.einsum("k,kni,kiv->niv", toy.joint(), weights, symbol)
        tables.append((mass / mass.sum(-1, keepdim=True)).log())
    return per_token.prod(-1), tables[0], tables[1]


def toy_uniform_bound(num_timesteps: int, *, true_posterior: bool) -> float:
    process = toy_uniform(num_timesteps)
    x = toy.sequences()
    total = 0.0
    for t in range(1, num_timesteps + 1):
        chance, leave_one_out, posterior = toy_tables(process, t)
        table = posterior if true_posterior else leave_one_out
        x0 = x[:, None].expand(27, 27, 3).reshape(1, -1)
        xt = x[None].expand(27, 27, 3).reshape(1, -1)
        log_probs = table[None].expand(27, 27, 3, 3).reshape(1, -1, 3)
        kl, _ = uniform_forms(process, log_probs, x0, xt, torch.tensor([t]))
        total += float((toy.joint()[:, None] * chance * kl.view(27, 27, 3).sum(-1)).sum())
    return total


@pytest.mark.parametrize(
    ("num_timesteps", "expected"),
    [(1, 3.11219), (2, 2.90085), (4, 2.74918), (16, 2.62685), (64, 2.59605), (256, 2.58839)],
)
def test_uniform_bound_of_the_toy(num_timesteps, expected):
    bound = toy_uniform_bound(num_timesteps, true_posterior=False)
    assert bound == pytest.approx(expected, abs=6e-6)
    assert bound > toy.ENTROPY


@pytest.mark.parametrize(
    ("num_timesteps", "expected"),
    [(2, 3.36856), (4, 3.58604), (16, 3.83526), (64, 3.92826), (256, 3.95903)],
)
def test_posterior_in_place_of_the_prediction_costs_more(num_timesteps, expected):
    """A guard for the convention: the network predicts a token from the others."""
    bound = toy_uniform_bound(num_timesteps, true_posterior=True)
    assert bound == pytest.approx(expected, abs=6e-6)


def test_cross_entropy_and_bound_have_the_same_minimiser():
    """Both gradients vanish at the leave-one-out table of the toy."""
    process = toy_uniform(8)
    x = toy.sequences()
    t = 3
    chance, table, _ = toy_tables(process, t)
    logits = table.clone().requires_grad_()
    x0 = x[:, None].expand(27, 27, 3).reshape(1, -1)
    xt = x[None].expand(27, 27, 3).reshape(1, -1)
    log_probs = logits.log_softmax(-1)[None].expand(27, 27, 3, 3).reshape(1, -1, 3)
    weights = (toy.joint()[:, None] * chance)[..., None].expand(27, 27, 3).reshape(1, -1)
    for losses in uniform_forms(process, log_probs, x0, xt, torch.tensor([t])):
        (grad,) = torch.autograd.grad((weights * losses).sum(), logits, retain_graph=True)
        assert float(grad.abs().max()) < 1e-8


# -- estimators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "num_timesteps"), [(1, 1), (5, 3), (64, 100), (256, 1000)])
def test_count_weights_sum_to_the_length(length, num_timesteps):
    """omega_k k summed over k is L exactly, so the law of (k, t) needs no rescaling."""
    keep = toy_keep(num_timesteps)
    law = DiscreteCounts(keep, length)
    t = torch.arange(1, num_timesteps + 1, dtype=torch.float64)
    k = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
    binomial = torch.distributions.Binomial(length, t / num_timesteps)
    omega_k = (binomial.log_prob(k).exp() / t * k).nan_to_num()
    omega_k[-1, -1] = length / num_timesteps  # the last step masks everything
    assert float(omega_k.sum()) == pytest.approx(length, rel=1e-10)
    assert_close(law.weights, omega_k / length, rtol=1e-8, atol=1e-14)


def test_counts_are_drawn_by_their_law():
    law = DiscreteCounts(toy_keep(6), 4)
    level = (torch.arange(120_000) + 0.5).double() / 120_000
    k, t = law.draw(level)
    drawn = torch.zeros(4, 6).index_put((k - 1, t - 1), torch.tensor(1.0), accumulate=True)
    assert_close(drawn.double() / 120_000, law.weights, rtol=0, atol=2e-5)


def test_monte_carlo_of_both_forms_agrees_with_enumeration():
    """At T = 8 on the toy: by (k, t), and by t alone with the weight 1/t."""
    num_draws, num_timesteps = 4000, 8
    generator = seeded_generator(6)
    process = Absorbing(toy.VOCAB_SIZE, num_timesteps, "linear")
    loss = denoiser_loss(toy.masked_denoiser, toy.MASK_ID)
    x = toy.sequences()[toy.joint().multinomial(num_draws, True, generator=generator)]
    exact = float(toy.joint() @ exact_masked_bound(loss, toy.sequences(), toy_keep(num_timesteps)))
    level = torch.rand(num_draws, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(num_draws, 3, generator=generator, dtype=torch.float64)

    k, t = process.count_law(3).draw(level)
    masked = choose_masked(uniforms, k)
    by_count = 3 / k * loss(x, masked, t).sum(1)
    t = 1 + (num_timesteps * level).long()
    masked = process.corrupt(x, t, uniforms) == toy.MASK_ID
    by_time = num_timesteps * process.weight(t) * loss(x, masked, t).sum(1)
    for estimates in (by_count, by_time):
        error = float(estimates.std()) / math.sqrt(num_draws)
        assert abs(float(estimates.mean()) - exact) < 4 * error
    assert float(by_count.std()) < float(by_time.std())


def test_hybrid_loss_keeps_the_size_of_a_loss_per_token():
    bound, cross_entropy = torch.tensor(4.0), torch.tensor(4.0)
    assert float(hybrid_loss(bound, cross_entropy, 10.0)) == 4.0
    assert float(hybrid_loss(bound, cross_entropy, 0.0)) == 4.0
