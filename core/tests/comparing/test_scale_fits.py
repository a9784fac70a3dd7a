"""Laws that are fitted to points whose law is known."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from nanozoo_core.comparing.scale import power_law
from nanozoo_core.comparing.scale.estimate import Estimate, interval, usable
from nanozoo_core.comparing.scale.repetition import effective
from nanozoo_core.comparing.scale.scores import Noise, pooled_noise
from nanozoo_core.testing import scaling_worlds as worlds

NOISE = Noise(0.004, 0.002, 99)


def exact():
    """(16, 2) and (16,): log n and log d, and log L."""
    scores = worlds.ladder("exact", np.random.default_rng(0), trunk=0, branch=0, seeds=1)
    return scores.logs, scores.log_loss


def noisy(seed):
    return worlds.ladder("noisy", np.random.default_rng(seed))


def test_the_exponents_of_exact_points_come_back():
    logs, losses = exact()
    found = power_law.fit(logs, losses[None])
    assert found.alpha[0] == pytest.approx([worlds.ALPHA, worlds.BETA], abs=1e-4)
    assert math.exp(found.log_e[0]) == pytest.approx(worlds.E, abs=1e-4)
    assert found.log_loss(logs)[0] == pytest.approx(losses, abs=1e-9)
    assert found.has_converged.all()
    assert found.agreeing[0] > 0.9
    assert found.spread[0] < 1e-6


def test_bad_starts_end_at_the_same_law():
    logs, losses = exact()
    bad = power_law.PowerLaw(
        log_e=np.array([-9.0]),
        log_a=np.array([[25.0, 0.0]]),
        alpha=np.array([[1.9, 0.02]]),
        **dict.fromkeys(("objective", "agreeing", "spread"), np.zeros(1)),
        has_converged=np.ones(1, dtype=bool),
    )
    again = power_law.refit(logs, np.stack([losses] * 3), bad)
    assert again.alpha == pytest.approx(np.array([[worlds.ALPHA, worlds.BETA]] * 3), abs=1e-4)


def test_points_that_stand_there_many_times_change_nothing():
    """Where an optimiser stops must not depend on the scale of its objective: fits that stopped
    early because of it made intervals far too narrow (arXiv 2404.10102)."""
    scores = noisy(1)
    once = power_law.fit(scores.logs, scores.log_loss[None])
    often = power_law.fit(np.repeat(scores.logs, 9, 0), np.repeat(scores.log_loss, 9)[None])
    assert often.alpha == pytest.approx(once.alpha, abs=1e-6)
    assert often.objective == pytest.approx(9 * once.objective, rel=1e-9)


@pytest.mark.parametrize("seed", [2, 3])
def test_no_general_optimiser_finds_a_lower_loss(seed):
    scores = noisy(seed)
    found = power_law.fit(scores.logs, scores.log_loss[None])
    centred = scores.logs - scores.logs.mean(0)

    def objective(p):
        terms = np.stack([p[0] + 0 * centred[:, 0], *(p[1:3] - p[3:] * centred).T])
        residuals = np.logaddexp.reduce(terms) - scores.log_loss
        return 1e6 * power_law.huber(residuals).sum()

    best = min(
        minimize(objective, [e, -1, -1, a, b], method="L-BFGS-B", options={"maxiter": 2000}).fun
        for e in (-1.0, 0.0)
        for a in (0.2, 0.6)
        for b in (0.2, 0.6)
    )
    assert 1e6 * found.objective[0] <= best * (1 + 1e-6)


def test_huber_is_a_square_near_zero_and_a_line_beyond():
    assert power_law.huber(np.array([-5e-4, 1e-3, 0.1])) == pytest.approx(
        [1.25e-7, 5e-7, 1e-3 * 0.1 - 5e-7]
    )


def test_intervals_of_a_surface_exist_and_hold_its_own_estimate():
    model = Estimate(noisy(4), NOISE, copies=20)
    alphas = model.surface.alpha
    assert alphas.shape == (21, 2)
    assert np.isfinite(alphas).all()
    for k in range(2):
        low, high = interval(alphas[1:, k])
        assert low < alphas[0, k] < high


def test_copies_repeat_and_differ_between_models():
    first, again = (Estimate(noisy(5), NOISE, copies=3) for _ in range(2))
    assert (first.deviations == again.deviations).all()
    other = Estimate(worlds.ladder("other", np.random.default_rng(5)), NOISE, copies=3)
    assert (first.deviations != other.deviations).any()


def test_few_rungs_carry_no_surface():
    whole = noisy(6)
    assert Estimate(whole, None).lack is None
    assert Estimate(whole.without("r0"), None).lack is None
    less = Estimate(whole.without("r0").without("r3"), None)
    assert "2 rungs with 4 budgets" in less.lack


def test_the_law_of_compute_and_its_slope_come_back():
    """On points that lie on one law of the compute alone."""
    scores = noisy(7)
    losses = 0.9 + 300 * scores.flops**-0.2
    exactly = type(scores)(**vars(scores) | {"loss": losses})
    found = Estimate(exactly, None)
    law = found.compute_law
    assert law.alpha[0, 0] == pytest.approx(0.2, abs=1e-3)
    at = math.log(3e13)
    wanted = -0.2 * 300 * math.exp(-0.2 * at) / (0.9 + 300 * math.exp(-0.2 * at))
    assert found.local_slope(at)[0] == pytest.approx(wanted, rel=1e-3)


def test_noise_is_split_between_trunks_and_branches():
    generator = np.random.default_rng(8)
    many = [worlds.ladder(f"m{n}", generator, trunk=0.004, branch=0.002) for n in range(150)]
    noise = pooled_noise(many)
    assert noise.trunk == pytest.approx(0.004, rel=0.1)
    assert noise.branch == pytest.approx(0.002, rel=0.05)
    assert noise.freedom == 150 * 4 * (1 + 3)
    draws = noise.draw(many[0], 4000, generator)
    same, other = np.corrcoef(draws.T)[0, 1], np.corrcoef(draws.T)[0, 4]
    assert same == pytest.approx(0.8, abs=0.05)
    assert abs(other) < 0.05
    assert draws.std() == pytest.approx(math.hypot(0.004, 0.002), rel=0.05)


def test_runs_of_their_own_share_no_noise():
    generator = np.random.default_rng(9)
    many = [worlds.ladder(f"m{n}", generator, trunk=0, branch=0.003) for n in range(60)]
    alone = [type(one)(**vars(one) | {"branched": False}) for one in many]
    noise = pooled_noise(alone)
    assert noise.trunk == 0
    assert noise.branch == pytest.approx(0.003, rel=0.05)
    assert pooled_noise([worlds.ladder("one", generator, seeds=1)]) is None


def test_repeated_text_is_worth_less_and_less():
    assert effective(5.0, 7.0) == 5.0
    assert effective(7.0, 7.0) == 7.0
    assert effective(1e9, 7.0) == pytest.approx(7 * (1 + 15.387756))
    assert effective(20e6, 20e6 / 6.2) / 20e6 == pytest.approx(0.87, abs=0.02)


@pytest.mark.parametrize(
    ("n", "d", "unique", "loss"),
    [
        (6.34e9, 242e9, 25e9, 2.2256440889984477),
        (8.67e9, 178e9, 25e9, 2.2269634075087867),
    ],
)
def test_repetition_as_the_repository_of_the_paper_has_it(n, d, unique, loss):
    a, b, e, exponent = 6.255414, 7.3049974, 0.6254804, 0.3526596
    useful = math.exp((a - b) / exponent) * unique  # weights that the unique text is the best for
    n_worth, d_worth = effective(n, useful, 5.309743), effective(d, unique)
    found = math.exp(e) + math.exp(a) * n_worth**-exponent + math.exp(b) * d_worth**-exponent
    assert found == pytest.approx(loss, rel=1e-7)


def test_points_read_too_often_are_in_no_fit():
    scores = noisy(10)
    repeated = type(scores)(**vars(scores) | {"unique": 1e6})
    kept, said = usable(repeated)
    assert (kept.tokens <= 16e6).all()
    assert len(kept.rung) == len(kept.loss) < len(scores.loss)
    assert "read the text more than 16 times" in said[0]
    assert usable(scores) == (scores, [])


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    draws, held, alphas = 200, np.zeros(3), []
    for seed in range(draws):
        scores = noisy(1000 + seed)
        model = Estimate(scores, NOISE, copies=200, seed=seed)
        law = model.surface
        alphas.append(law.alpha[0])
        for k, truth in enumerate((worlds.ALPHA, worlds.BETA, math.log(worlds.E))):
            values = law.log_e if k == 2 else law.alpha[:, k]
            low, high = interval(values[1:])
            held[k] += low <= truth <= high
    assert ((held / draws >= 0.87) & (held / draws <= 0.99)).all(), held / draws
    means = np.mean(alphas, 0)
    assert means[1] == pytest.approx(worlds.BETA, abs=0.005)
    assert means[0] == pytest.approx(worlds.ALPHA, abs=0.03)
