import pytest
import torch
from rd_models import make_config

from nanozoo_core.contract import Step
from nanozoo_rd.adapter import draw_step
from nanozoo_rd.depth import DepthLaw

# Quantiles of the published sampler, from 10^6 draws of its code at sigma 1/2.
QUANTILES = {
    4: {0.5: 4, 0.99: 14},
    8: {0.5: 8, 0.99: 26},
    32: {0.01: 8, 0.05: 12, 0.5: 29, 0.95: 67, 0.99: 94},
}


def law(mean: float, **changes) -> DepthLaw:
    return DepthLaw(**({"sampling": "lognormal_poisson", "mean": mean, "sigma": 0.5} | changes))


def draws(of: DepthLaw, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([of.draw(generator) for _ in range(count)], dtype=torch.float64)


@pytest.mark.parametrize("mean", QUANTILES)
def test_quantiles_are_those_of_the_published_sampler(mean):
    for share, depth in QUANTILES[mean].items():
        found = next(n for n in range(1, 1000) if law(mean).at_most(n) >= share)
        assert abs(found - depth) <= 1


@pytest.mark.parametrize("mean", [1, 4, 32])
def test_draws_follow_the_law(mean):
    count = 20_000
    found = draws(law(mean), count)
    assert found.min() >= 1
    error = float(found.std()) / count**0.5
    assert abs(float(found.mean()) - (mean + 1)) < 4 * error
    for depth in (1, mean, 2 * mean):
        share = law(mean).at_most(depth)
        found_share = float((found <= depth).double().mean())
        assert abs(found_share - share) < 4 * (share * (1 - share) / count) ** 0.5 + 1e-9


def test_a_variance_taken_for_a_deviation_is_another_law():
    """The mistake of sigma = 3.0^(1/2): the same mean, most draws far below it."""
    wrong = law(32, sigma=3.0**0.5)
    assert wrong.at_most(8) > 0.5 > law(32).at_most(28)


@pytest.mark.parametrize(
    "of",
    [
        law(4),
        law(4, sigma=0.0),
        law(4, largest=5),
        law(3, sampling="uniform"),
        law(3.4, sampling="fixed"),
        law(3, sampling="uniform", largest=4),
    ],
    ids=["paper", "poisson", "clamped", "uniform", "fixed", "uniform clamped"],
)
@pytest.mark.parametrize("cap", [None, 1, 2, 50])
def test_expectations_are_means_of_draws(of, cap):
    found = draws(of, 20_000)
    if cap is not None:
        found = found.clamp(max=cap)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(of.expected(cap) - float(found.mean())) < 4 * error + 1e-9


def test_plain_poisson_has_its_closed_form():
    assert law(2, sigma=0.0).at_most(1) == pytest.approx(0.1353352832366127)  # e^-2


def test_the_curriculum_raises_the_mean_linearly():
    config = make_config(mean_recurrence=9, recurrence_curriculum="linear", curriculum_fraction=0.5)
    assert [config.law(p).mean for p in (0.0, 0.25, 0.5, 1.0)] == [1, 5, 9, 9]
    # Half of the run at 9, half at 5 on average, and one iteration on top.
    assert config.expected_depths()[0] == pytest.approx(8.0)


def step(number: int, **changes) -> Step:
    return Step(**({"number": number, "progress": 0.5, "seed": 3} | changes))


def test_all_ranks_and_micro_steps_draw_alike():
    config = make_config(mean_recurrence=32)
    ours = [draw_step(config, step(5)), draw_step(config, step(5, rank=1, world_size=2))]
    ours.append(draw_step(config, step(5, micro_step=3, num_micro_steps=4)))
    assert {(depth, int(key)) for depth, key in ours} == {(ours[0][0], int(ours[0][1]))}


def test_steps_draw_differently():
    config = make_config(mean_recurrence=32)
    found = [draw_step(config, step(number)) for number in range(50)]
    assert len({depth for depth, _ in found}) > 15
    assert len({int(key) for _, key in found}) == 50
