"""Compute multipliers of models whose multiplier is known."""

import math

import numpy as np
import pytest

from nanozoo_core.comparing.scale import frontier, multiplier
from nanozoo_core.comparing.scale.estimate import Estimate
from nanozoo_core.comparing.scale.frontier import Frontier
from nanozoo_core.comparing.scale.multiplier import along, at_loss, holm, in_text, in_weights, trend
from nanozoo_core.comparing.scale.scores import Noise
from nanozoo_core.testing import scaling_worlds as worlds

NOISE = Noise(0.004, 0.002, 99)
KINDS = ("surface", "hull")


def exact(name, **options):
    made = worlds.ladder(name, np.random.default_rng(0), trunk=0, branch=0, seeds=1, **options)
    return Estimate(made, None)


def values(found):
    return [one.value for one in found]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scores_have_a_multiplier_of_one(kind):
    noisy = Estimate(worlds.ladder("m", np.random.default_rng(1)), None)
    found = along(noisy, noisy, "flops", kind)
    assert values(found) == pytest.approx([1] * 4, abs=1e-9)
    assert trend(found).slope == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", ["flops", "seconds"])
def test_cheaper_flops_are_the_multiplier(kind, axis):
    """The control pays 1.5 times as much everywhere, and the other way round."""
    control, model = exact("control"), exact("model", cheaper=[1.5] * 4)
    tolerance = 1e-6 if kind == "hull" else 1e-3
    assert values(along(model, control, axis, kind)) == pytest.approx([1.5] * 4, abs=tolerance)
    back = values(along(control, model, axis, kind))
    assert back == pytest.approx([1 / 1.5] * 4, abs=tolerance)


def test_a_frontier_is_the_least_over_all_sizes():
    """Against a search by brute force."""
    model = exact("model")
    found = model.frontier("flops", "surface")
    for cost in np.exp(found.log_cost[[50, 200, 399]]):
        sizes = np.geomspace(worlds.SIZES[0], worlds.SIZES[-1], 20_001)
        each = np.exp(np.interp(np.log(sizes), np.log(worlds.SIZES), np.log(worlds.FLOPS)))
        best = min(worlds.law(n, cost / f) for n, f in zip(sizes, each, strict=True))
        assert math.exp(found.at(math.log(cost))[0]) == pytest.approx(best, rel=2e-5)


def test_the_shift_of_weights_and_text_costs_less_than_its_factor():
    """More weights and more text by 1.5 in FLOPs: the truth by dense frontiers is below 1.5 where
    both stand on their smallest size."""
    control = exact("control", longer=True)
    model = exact("model", shift=[1.5**0.5] * 4)
    assert values(along(model, control, "flops", "surface")) == pytest.approx(
        [1.38, 1.49, 1.49, 1.49], rel=0.02
    )
    text = in_text(model, control)
    gain = []
    for rung in range(4):
        at = 1.5**0.5 * worlds.TOKENS[rung] / 2, worlds.SIZES[rung]
        wanted = worlds.law(1.5**0.5 * at[1], at[0])
        ds = np.geomspace(at[0] / 4, at[0] * 4, 200_001)
        losses = worlds.E + worlds.A * at[1] ** -worlds.ALPHA + worlds.B * ds**-worlds.BETA
        gain.append(ds[np.argmin(np.abs(losses - wanted))] / (worlds.TOKENS[rung] / 2))
    assert values(text) == pytest.approx(gain, rel=1e-3)
    weights = in_weights(model, control)
    assert weights[0].value > 1.5**0.5
    assert weights[-1].bound == (">", pytest.approx(1.0))


def test_a_hull_leaves_out_what_a_cheaper_point_beats_and_what_lies_above_a_chord():
    cost = np.log([1.0, 2.0, 4.0, 8.0, 16.0])
    losses = np.array([1.0, 0.95, 0.7, 0.75, 0.6])
    corners = frontier._hull(cost, losses)
    assert corners[0] == pytest.approx(np.log([1, 4, 16]))
    assert list(corners[1]) == [1.0, 0.7, 0.6]


def test_a_score_that_the_control_never_reached_is_a_bound():
    control = exact("control")
    better = exact("better", of=lambda n, d: worlds.law(n, d) / 4)
    for kind in KINDS:
        ahead = along(better, control, "flops", kind)
        behind = along(control, better, "flops", kind)
        assert all(one.value is None and one.bound[0] == ">" for one in ahead)
        assert all(one.value is None and one.bound[0] == "<" for one in behind)
        most = control.scores.flops.max()
        assert [one.bound[1] for one in ahead] == pytest.approx(
            [most / one.cost for one in ahead], rel=1e-9
        )
        assert all(math.isfinite(one.bound[1]) for one in (*ahead, *behind))
        assert trend(ahead) is None


def test_swapping_model_and_control_inverts_the_multiplier_exactly():
    control = Estimate(worlds.ladder("c", np.random.default_rng(2)), NOISE, copies=9)
    shifted = worlds.ladder("m", np.random.default_rng(3), shift=[1.2] * 4)
    model = Estimate(shifted, NOISE, copies=9)
    mine, theirs = (one.frontier("flops", "surface") for one in (model, control))
    for place in (0.5, 0.7, 0.9):
        losses = mine.at(mine.log_cost[0] + place * (mine.log_cost[-1] - mine.log_cost[0]))
        assert (at_loss(mine, theirs, losses) == -at_loss(theirs, mine, losses)).all()
    beyond = np.full(10, theirs.log_loss.min() - 1)
    assert np.isposinf(theirs.least_cost(beyond)).all()
    assert np.isneginf(theirs.least_cost(beyond + 9)).all()


def test_copies_outside_open_an_end_of_the_interval():
    """A third of the copies are worse than the control's worst, a few are better than its best."""
    grid = np.linspace(0, 10, 101)
    control = Frontier(grid, np.tile(-grid / 10, (101, 1)))
    moved = np.concatenate([[0.0], np.full(60, 0.1), np.full(33, 2.0), np.full(7, -2.0)])
    model = Frontier(grid, moved[:, None] - grid / 10)
    found = multiplier.multiplier("r", model, control, 5.0)
    assert found.value == pytest.approx(1)
    assert found.interval[0] == 0
    assert found.interval[1] == pytest.approx(math.exp(-1))


def test_a_multiplier_that_rises_is_seen_and_one_that_does_not_is_none():
    generator = np.random.default_rng(4)
    control = Estimate(worlds.ladder("c", generator, longer=True), NOISE, copies=60)
    growing = worlds.ladder("m", generator, cheaper=np.geomspace(1.2, 2, 4))
    rising = trend(along(Estimate(growing, NOISE, copies=60), control, "flops", "surface"))
    assert rising.interval[0] > 0
    assert rising.p < 0.1
    assert rising.without_lowest > 0.03
    assert rising.per_decade == pytest.approx((2 / 1.2) ** (1 / math.log10(2e14 / 2.3e12)), rel=0.2)
    same = Estimate(worlds.ladder("copy", generator), NOISE, copies=60)
    flat = trend(along(same, control, "flops", "surface"))
    assert flat.interval[0] < 0 < flat.interval[1]
    for one in along(same, control, "flops", "surface"):
        assert one.interval[0] < 1 < one.interval[1]


def test_holm_asks_more_of_each_test_when_there_are_several():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.6}) == {"a": True, "b": False, "c": False}
    assert holm({"a": 0.01, "b": 0.02}) == {"a": True, "b": True}


def simulate(draws, *, model, copies=200, seeds_from=0):
    """(values (draws, 4), whether the interval holds `truth`, trends) of noisy ladders."""
    found, trends = [], []
    for seed in range(seeds_from, seeds_from + draws):
        generator = np.random.default_rng(seed)
        of = {"of": model["of"]} if "of" in model else {}
        control = worlds.ladder("c", generator, longer=True, **of)
        mine = Estimate(worlds.ladder("m", generator, **model), NOISE, copies, seed)
        rungs = along(mine, Estimate(control, NOISE, copies, seed), "flops", "surface")
        found.append([(one.value, *one.interval) for one in rungs])
        trends.append(trend(rungs))
    return np.array(found), trends


@pytest.mark.slow
def test_copies_of_the_control_are_worth_one():
    found, trends = simulate(100, model={})
    assert found[..., 0].mean(0) == pytest.approx([1] * 4, abs=0.03)
    holds = (found[..., 1] <= 1) & (found[..., 2] >= 1)
    assert (holds.mean(0) >= 0.87).all()
    assert np.mean([one.interval[0] > 0 or one.interval[1] < 0 for one in trends]) <= 0.11


@pytest.mark.slow
@pytest.mark.parametrize("of", [worlds.law, worlds.interacting])
def test_a_shift_is_found_under_noise(of):
    """Under the law that is fitted, and under one that no surface of its form is."""
    shift = {"of": of, "shift": [1.5**0.5] * 4}
    control = exact("control", of=of, longer=True)
    truth = values(along(exact("model", **shift), control, "flops", "hull"))
    if of is worlds.law:
        truth = [1.38, 1.49, 1.49, 1.49]
    found, _ = simulate(60, model=shift)
    near = 0.03 if of is worlds.law else 0.05
    assert found[..., 0].mean(0) == pytest.approx(truth, rel=near)
    if of is worlds.law:
        holds = (found[..., 1] <= truth) & (found[..., 2] >= truth)
        assert (holds.mean(0) >= 0.85).all()


@pytest.mark.slow
def test_planted_trends_are_found():
    _, trends = simulate(60, model={"cheaper": np.geomspace(1.5, 2.5, 4)})
    assert np.mean([one.interval[0] > 0 for one in trends]) >= 0.95
