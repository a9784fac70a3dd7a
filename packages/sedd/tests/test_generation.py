"""Samplers: their law on the toy source, prompts and holes, whole models."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import toy_scores as exact
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.diffusion.schedules import Geometric, Linear, Schedule
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.laws import SamplerLaws
from nanozoo_core.testing.diffusion.models import sampler_models
from nanozoo_core.testing.statistics import chi_square, chi_square_limit
from nanozoo_sedd import uniform
from nanozoo_sedd.generate import first_hitting, jump, lift_share, time_grid, unmask

NUM_DRAWS = 100_000
MASSES = [0.2, 3.0, 1.0]  # of a measure that does not sum to one, by position


# -- masks ----------------------------------------------------------------------------------------


def masked_table(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
    return exact.masked_log_measure(x).flatten(0, 1)[rows]


def holes(x: Tensor, seed: int) -> Holes:
    return Holes(x, x != toy.MASK_ID, SamplingSettings(), seeded_generator(seed))


def masks(num_draws: int) -> Tensor:
    return torch.full((num_draws, 3), toy.MASK_ID)


def unmasked(table, num_steps: int, *, num_draws: int = NUM_DRAWS, **changes) -> Tensor:
    options = {
        "mask_id": toy.MASK_ID,
        "num_steps": num_steps,
        "schedule": Linear(),
        "predictor": "analytic",
    }
    *_, last = unmask(table, holes(masks(num_draws), 1), **(options | changes))
    return last


def hit(table, x: Tensor, seed: int) -> Tensor:
    *_, last = first_hitting(table, holes(x, seed), mask_id=toy.MASK_ID)
    return last


def masked_law(num_steps: int) -> Tensor:
    """What `unmask` draws from the exact table, by multiplying its steps over all 64 states."""
    states = exact.MASKED_STATES
    law = (states == toy.MASK_ID).all(1).double()
    probs = exact.masked_log_measure(states).exp()  # (64, 3, V)
    for t, s in pairwise(time_grid(num_steps)):
        share = 1.0 if s == 0 else (t - s) / t
        reverse = torch.zeros(64, 3, 4, dtype=torch.float64)
        hidden = states == toy.MASK_ID
        reverse[..., :3] = share * probs * hidden[..., None]
        reverse[..., 3] = (1 - share) * hidden
        kept = torch.nn.functional.one_hot(states, 4).double()
        reverse = torch.where(hidden[..., None], reverse, kept)
        joint = torch.ones(64, 64, dtype=torch.float64)
        for i in range(3):
            joint = joint * reverse[:, i][:, states[:, i]]
        law = law @ joint
    clean = (states < 3).all(1)
    assert float(law[~clean].sum()) < 1e-12
    return law[clean]


def test_many_steps_draw_from_the_source_and_few_do_not():
    distances = [0.5 * float((masked_law(n) - toy.joint()).abs().sum()) for n in (4, 256)]
    assert distances[1] < 0.01
    assert distances[0] > 10 * distances[1]


@pytest.mark.parametrize("predictor", ["analytic", "euler"])
def test_unmasked_windows_follow_the_computed_law(predictor):
    """With alpha = 1 - t both predictors are the same step, (t - s) / t."""
    drawn = unmasked(masked_table, 6, predictor=predictor)
    assert chi_square(toy.counts(drawn), masked_law(6)) < chi_square_limit(26)


def test_unmasked_windows_follow_the_source_as_steps_grow():
    drawn = unmasked(masked_table, 200)
    assert chi_square(toy.counts(drawn), toy.joint()) < chi_square_limit(26)
    few = unmasked(masked_table, 4)
    assert chi_square(toy.counts(few), toy.joint()) > 10 * chi_square_limit(26)


@pytest.mark.parametrize("schedule", [Linear(1e-3), Geometric(1e-4, 20.0)], ids=repr)
def test_analytic_step_is_the_tweedie_step_of_explicit_matrices(schedule):
    """[e^{-D R} s]_y [e^{D R}](y -> mask) with V + 1 states, s = alpha / (1 - alpha) u."""
    t, s = 0.7, 0.4
    sigma, before = schedule.sigma(torch.tensor([t, s], dtype=torch.float64)).tolist()
    rate = -torch.eye(4, dtype=torch.float64)
    rate[:, 3] += 1.0
    u = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    scores = torch.cat([u / math.expm1(sigma), torch.ones(1).double()])
    pulled = scores @ torch.matrix_exp(-(sigma - before) * rate)
    expected = pulled * torch.matrix_exp((sigma - before) * rate)[:, 3]
    share = lift_share(schedule, t, s, "analytic")
    step = torch.cat([share * u, torch.tensor([1 - share], dtype=torch.float64)])
    assert_close(step, expected, rtol=0, atol=1e-12)
    euler = lift_share(schedule, t, t - 1e-6, "euler")
    assert euler == pytest.approx(lift_share(schedule, t, t - 1e-6, "analytic"), rel=1e-4)


def test_first_hitting_draws_from_the_source_exactly():
    drawn = hit(masked_table, masks(NUM_DRAWS), 2)
    assert chi_square(toy.counts(drawn), toy.joint()) < chi_square_limit(26)


def crooked_law() -> Tensor:
    """Of `crooked_table` in the limit: orders of lifting weigh with the masses."""
    masses = torch.tensor(MASSES, dtype=torch.float64)
    law = torch.zeros(27, dtype=torch.float64)
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        left, share = [0, 1, 2], 1.0
        probs = torch.ones(27, dtype=torch.float64)
        seen = torch.full((27, 3), toy.MASK_ID)
        for i in order:
            share *= float(masses[i] / masses[left].sum())
            left.remove(i)
            table = crooked(exact.masked_log_measure(seen)).exp()
            probs = probs * table[:, i].gather(1, exact.SEQUENCES[:, i : i + 1])[:, 0]
            seen[:, i] = exact.SEQUENCES[:, i]
        law += share * probs
    return law


def crooked(log_p: Tensor) -> Tensor:
    """Conditionals too sharp, with which the law of a window depends on the order."""
    return (2 * log_p).log_softmax(-1)


def crooked_table(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
    mass = torch.tensor(MASSES, dtype=torch.float64).log()
    return (crooked(exact.masked_log_measure(x)) + mass[:, None]).flatten(0, 1)[rows]


def test_unnormalised_measures_have_one_law_in_the_limit():
    """First-hitting follows it exactly, many small steps approach it; even orders miss it."""
    assert float(crooked_law().sum()) == pytest.approx(1.0, abs=1e-12)
    limit = chi_square_limit(26)
    drawn = hit(crooked_table, masks(40_000), 3)
    assert chi_square(toy.counts(drawn), crooked_law()) < limit
    drawn = unmasked(crooked_table, 200, num_draws=40_000)
    assert chi_square(toy.counts(drawn), crooked_law()) < limit

    def even(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        return crooked_table(x, sigma, rows).log_softmax(-1)

    drawn = unmasked(even, 200, num_draws=40_000)
    assert chi_square(toy.counts(drawn), crooked_law()) > 2 * limit


def test_given_tokens_condition_exactly_wherever_they_stand():
    """x_2 is known: the rest follows p(x_1, x_3 | x_2)."""
    x = masks(40_000)
    x[:, 1] = 1
    drawn = hit(masked_table, x, 4)
    assert bool((drawn[:, 1] == 1).all())
    fitting = exact.SEQUENCES[:, 1] == 1
    law = toy.joint() * fitting
    assert chi_square(toy.counts(drawn), law / law.sum()) < chi_square_limit(8)


def test_no_mask_is_left_whatever_the_masses():
    """A mass of nearly nothing is never lifted in time, and lifted in the last step."""

    def faint(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        return masked_table(x, sigma, rows) - 50.0

    drawn = unmasked(faint, 5, num_draws=50)
    assert bool((drawn < 3).all())


def test_steps_that_lift_nothing_are_free_where_the_measure_ignores_sigma():
    calls = []

    def counted(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        calls.append(sigma)
        return masked_table(x, sigma, rows)

    one = unmasked(counted, 300, num_draws=1, reuse=True)
    assert len(calls) <= 3
    calls.clear()
    two = unmasked(counted, 300, num_draws=1, reuse=False)
    assert len(calls) > 3
    assert torch.equal(one, two)
    assert calls[0] == float("inf")
    assert all(a > b for a, b in pairwise(calls))


# -- uniform noise --------------------------------------------------------------------------------


def uniform_table(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
    return exact.uniform_log_scores(sigma)[toy.code(x)].flatten(0, 1)[rows]


def jumped(num_steps: int, schedule: Schedule, **changes) -> Tensor:
    options = {
        "vocab_size": 3,
        "num_steps": num_steps,
        "schedule": schedule,
        "predictor": "analytic",
    }
    nothing = torch.zeros(NUM_DRAWS, 3, dtype=torch.int64)
    empty = Holes(nothing, nothing.bool(), SamplingSettings(), seeded_generator(5))
    *_, last = jump(uniform_table, empty, **(options | changes))
    return last


def uniform_law(num_steps: int, schedule: Schedule, *, euler: bool = False) -> Tensor:
    """What `jump` draws, by multiplying its steps over the 27 sequences."""
    states = exact.SEQUENCES
    law = torch.full((27,), 1 / 27, dtype=torch.float64)

    def at(function, t: float) -> float:
        return float(function(torch.tensor(t, dtype=torch.float64)))

    for t, s in pairwise(time_grid(num_steps)):
        sigma = at(schedule.sigma, t)
        scores, own = exact.uniform_log_scores(sigma).exp().flatten(0, 1), states.flatten()
        if s == 0:
            weights = uniform.decoder_probs(scores, own, sigma)
        elif euler:
            weights = uniform.euler_weights(scores, own, at(schedule.sigma_rate, t) * (t - s))
        else:
            weights = uniform.tweedie_weights(scores, own, sigma - at(schedule.sigma, s))
        reverse = (weights / weights.sum(-1, keepdim=True)).view(27, 3, 3)
        joint = torch.ones(27, 27, dtype=torch.float64)
        for i in range(3):
            joint = joint * reverse[:, i][:, states[:, i]]
        law = law @ joint
    return law


def distance(law: Tensor) -> float:
    return 0.5 * float((law - toy.joint()).abs().sum())


SCHEDULES = [Linear(1e-3), Geometric(1e-4, 20.0)]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["loglinear", "geometric"])


@each_schedule
@pytest.mark.parametrize("euler", [False, True], ids=["analytic", "euler"])
def test_uniform_noise_leads_to_the_source_as_steps_grow(schedule, euler):
    few, many = (distance(uniform_law(n, schedule, euler=euler)) for n in (8, 256))
    assert many < 0.01
    assert few > 10 * many


@each_schedule
def test_euler_meets_analytic_as_steps_grow(schedule):
    gaps = []
    for num_steps in (32, 256):
        laws = [uniform_law(num_steps, schedule, euler=euler) for euler in (True, False)]
        gaps.append(float((laws[0] - laws[1]).abs().sum()))
    assert gaps[1] < 0.3 * gaps[0]
    assert gaps[1] < 0.02


@pytest.mark.parametrize("predictor", ["analytic", "euler"])
def test_jumping_tokens_follow_the_computed_law(predictor):
    law = uniform_law(8, Linear(1e-3), euler=predictor == "euler")
    drawn = jumped(8, Linear(1e-3), predictor=predictor)
    assert chi_square(toy.counts(drawn), law) < chi_square_limit(26)


def test_jumping_tokens_follow_the_source_as_steps_grow():
    drawn = jumped(200, Linear(1e-3))
    assert chi_square(toy.counts(drawn), toy.joint()) < chi_square_limit(26)


# -- whole models ---------------------------------------------------------------------------------

UNIFORM = {"transition_type": "uniform", "cond_dim": 8, "sampling_steps": 8}
VARIANTS = {
    "absorbing": {"sampling_steps": 8},
    "agnostic": {"time_conditioning": False, "sampling_steps": 8},
    "euler": {"predictor": "euler", "noise_schedule": "geometric", "sampling_steps": 8},
    "first-hitting": {"time_conditioning": False, "predictor": "first_hitting"},
    "uniform": UNIFORM,
    "uniform-euler": UNIFORM | {"predictor": "euler"},
    "denoiser": UNIFORM | {"score_param": "denoiser"},
}


class TestSamplers(SamplerLaws):
    models = sampler_models("sedd", VARIANTS, {})

    def test_greedy_drawing_in_one_step_takes_the_largest_scores(self):
        """The masses are low, so that nothing is lifted before the last step, which lifts all."""
        model = self.models.make().eval()
        with torch.no_grad():
            model.net.head.bias.sub_(100.0)
        filled = self.infill(model, self.after(1), 4, temperature=0, num_steps=1)
        window = torch.tensor([[1] + [self.models.vocab_size] * self.models.seq_len])
        sigma = Linear().sigma(torch.tensor([1e-5]).double())
        with torch.no_grad():
            expected = model(window, sigma)[0, 1:].argmax(-1)
        assert filled[1:] == expected.tolist()

    def test_first_hitting_takes_one_step_per_mask_and_no_number_of_them(self):
        model, length = self.models.make("first-hitting").eval(), self.models.seq_len
        steps: list[PartialText] = []
        self.infill(model, self.after(1), 6, on_step=steps.append)
        left = [sum(token is None for token in step) for step in steps]
        assert left == list(range(length, -1, -1))
        with pytest.raises(ConfigError, match=r"num_steps=4 has no effect with .*first_hitting"):
            self.infill(model, self.after(1), 6, num_steps=4)

    def test_cache_changes_no_text(self):
        model = self.models.make("agnostic", sampling_steps=60).eval()
        for seed in range(5):
            texts = [self.infill(model, self.after(2), seed, use_cache=c) for c in (True, False)]
            assert texts[0] == texts[1]


@pytest.mark.parametrize("num_steps", [1, 7, 64])
def test_time_grid_falls_evenly_and_then_to_zero(num_steps):
    grid = time_grid(num_steps)
    assert grid[0] == 1.0
    assert grid[-2:] == [1e-5, 0.0]
    assert len(grid) == num_steps + 2
    assert all(a > b for a, b in pairwise(grid))
