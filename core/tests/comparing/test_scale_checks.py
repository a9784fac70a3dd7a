"""Other ways to the exponents, surfaces without a rung, and what lies beyond the ladder, of known
laws."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from nanozoo_core.comparing.scale import checks, report
from nanozoo_core.comparing.scale.collect import Collected
from nanozoo_core.comparing.scale.estimate import Estimate
from nanozoo_core.comparing.scale.multiplier import along
from nanozoo_core.comparing.scale.picture import write_picture
from nanozoo_core.comparing.scale.request import parse
from nanozoo_core.comparing.scale.scores import Noise, Scores
from nanozoo_core.comparing.scale.verdict import judge
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing import scaling_worlds as worlds

E, A, B = 0.7, 40.0, 90.0


def wide(alpha, beta, sizes, *, computes=(1e13, 1e15), each=33):
    """Every size at the same computes, with 6 FLOPs for each weight and token."""
    rows = [(n, c / 6 / n, c) for n in sizes for c in np.geomspace(*computes, each)]
    n, d, flops = np.array(rows).T
    names = {size: f"r{at}" for at, size in enumerate(sizes)}
    return Scores(
        model="wide",
        rung=tuple(names[size] for size in n),
        budget=tuple(round(c / computes[1], 12) for c in flops),
        seed=(0,) * len(n),
        n=n,
        tokens=d,
        unique=1e12,
        flops=flops,
        seconds=flops,
        bytes=d,
        loss=E + A * n**-alpha + B * d**-beta,
    )


def test_the_envelope_of_many_sizes_grows_as_the_law_says():
    """The best size is G (C / 6)^a, a = beta / (alpha + beta)."""
    for alpha, beta in [(0.3, 0.3), (0.34, 0.28)]:
        found = checks.by_envelope(wide(alpha, beta, np.geomspace(1e5, 1e8, 61)))
        assert found.computes == 16
        assert found.exponent == pytest.approx(beta / (alpha + beta), abs=0.01)


def test_the_vertices_of_parabolas_grow_as_the_law_says():
    """Exactly where alpha is beta and the sizes lie around the best one: then both sides of the
    valley are alike."""
    middle = (A / B) ** (1 / 0.7) * (1e14 / 6) ** 0.5
    found = checks.by_parabolas(
        wide(0.35, 0.35, middle * np.geomspace(1 / 3, 3, 7), computes=(5e13, 2e14))
    )
    assert found.computes == 16
    assert found.exponent == pytest.approx(0.5, abs=0.01)


def test_a_parabola_needs_four_sizes_that_are_near():
    few = wide(0.35, 0.35, np.geomspace(1e6, 8e6, 3))
    assert checks.by_parabolas(few) == checks.Growth(None, 0)
    far = wide(0.35, 0.35, np.geomspace(1e5, 1e8, 9))
    assert checks.by_parabolas(far) == checks.Growth(None, 0)
    assert checks.by_parabolas(worlds.ladder("usual", np.random.default_rng(0))).computes == 0


def test_curves_hold_the_means_of_seeds_and_nothing_beyond():
    scores = worlds.ladder("m", np.random.default_rng(0), seeds=2)
    grid, curves = checks.curves_of(scores)
    assert grid[[0, -1]] == pytest.approx(np.log([scores.flops.min(), scores.flops.max()]))
    first = scores.of("r0")
    ends = [first[n] for n in range(len(first)) if scores.budget[first[n]] == 1 / 8]
    assert len(ends) == 2
    assert curves[0, 0] == pytest.approx(scores.log_loss[ends].mean())
    assert np.isinf(curves[0, -1])
    assert np.isinf(curves[3, 0])


@cache
def exact(name, cheaper=1.0, longer=False):
    generator = np.random.default_rng(0)
    made = worlds.ladder(name, generator, trunk=0, branch=0, seeds=1, cheaper=[cheaper] * 4,
                         longer=longer)  # fmt: skip
    return Estimate(made, None)


def test_an_exact_surface_is_the_same_without_any_rung():
    control, model = exact("c", longer=True), exact("m", cheaper=1.3)
    assert model.refits.alpha == pytest.approx(
        np.array([[worlds.ALPHA, worlds.BETA]] * 4), abs=1e-3
    )
    found = along(model, control, "flops", "surface")
    bands = checks.refitted(model, control, found)
    for one, (low, high) in zip(found, bands, strict=True):
        assert (low, high) == pytest.approx((one.value, one.value), rel=2e-3)


def test_a_mistuned_rung_widens_the_band_without_it():
    """3 percent too high a loss at the first rung, which seeds know nothing of."""
    control = exact("c", longer=True)
    good = exact("m").scores
    tilted = np.where([rung == "r0" for rung in good.rung], 1.03, 1.0) * good.loss
    model = Estimate(replace(good, loss=tilted), None)
    found = along(model, control, "flops", "surface")
    bands = checks.refitted(model, control, found)
    assert max(high / low for low, high in bands) > 1.1
    assert bands[-1][0] <= found[-1].value <= bands[-1][1]


def test_three_rungs_carry_no_surface_without_one():
    control, model = exact("c"), Estimate(exact("m").scores.without("r3"), None)
    assert model.lack is None
    assert checks.refitted(model, control, along(model, control, "flops", "surface")) is None
    assert model.refits is None


def test_beyond_the_ladder_a_frontier_goes_on_along_its_law():
    model = exact("m")
    inside, further = model.frontier("flops", "surface"), model.beyond(3.0)
    assert further.log_cost[0] == pytest.approx(inside.log_cost[-1])
    assert further.log_cost[-1] - further.log_cost[0] == pytest.approx(math.log(3))
    sizes = np.geomspace(worlds.SIZES[0], worlds.SIZES[-1] * 3, 40_001)
    slope = math.log(worlds.FLOPS[3] / worlds.FLOPS[2]) / math.log(
        worlds.SIZES[3] / worlds.SIZES[2]
    )
    each = np.exp(np.interp(np.log(sizes), np.log(worlds.SIZES), np.log(worlds.FLOPS)))
    each *= np.maximum(sizes / worlds.SIZES[-1], 1) ** slope
    most = 3 * model.scores.flops.max()
    best = min(worlds.law(n, most / f) for n, f in zip(sizes, each, strict=True))
    assert math.exp(further.log_loss[0, -1]) == pytest.approx(best, rel=5e-5)
    assert Estimate(model.scores.without("r0").without("r1"), None).beyond(3.0) is None


def test_an_extrapolation_is_off_and_goes_no_further_than_three_times():
    assert parse(["models=toy", "control=toy"]).extrapolate is None
    assert parse(["models=toy", "control=toy", "extrapolate=3"]).extrapolate == 3
    for factor in ("3.01", "1", "no"):
        with pytest.raises(ConfigError, match=f"extrapolate={factor}"):
            parse(["models=toy", "control=toy", f"extrapolate={factor}"])


def test_the_report_names_the_checks_and_what_is_extrapolated(tmp_path):
    generator = np.random.default_rng(0)
    scores = {
        "control": worlds.ladder("control", generator, longer=True),
        "better": worlds.ladder("better", generator, cheaper=[1.3] * 4),
    }
    verdict = judge(Collected(scores, dict.fromkeys(scores, ("t", 1)), ()), "control", copies=4)
    parts = report.sections(verdict, plan="p", missing=[], extrapolate=2.0)
    text = report.markdown(parts, command="c")
    one = verdict.against["better"].compute[1]
    low, high = one.refits
    assert 0.8 * one.value < low <= high < 1.25 * one.value
    assert f"{low:.3g} .. {high:.3g}" in text
    assert "by parabolas" in text
    assert f"{2 * scores['control'].flops.max():.2e}" in text
    assert "## Extrapolated" in text
    usual = report.sections(verdict, plan="p", missing=[])
    assert "Extrapolated" not in [part.title for part in usual]
    drawn = []
    for factor in (None, 3.0):
        write_picture(tmp_path / "a.png", [verdict.estimates["better"]], extrapolate=factor)
        drawn.append((tmp_path / "a.png").read_bytes())
    assert drawn[0] != drawn[1]


def test_seeds_widen_what_is_extrapolated():
    made = worlds.ladder("m", np.random.default_rng(0))
    edge = Estimate(made, Noise(0.004, 0.002, 99), copies=20).beyond(3.0)
    spread = edge.log_loss[1:].std(0)
    assert spread[-1] > 1.2 * spread[0] > 0
