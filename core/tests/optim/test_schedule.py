import math

import pytest

from nanozoo_core.config import MuonConfig, OptimConfig, from_defaults
from nanozoo_core.errors import ConfigError
from nanozoo_core.optim.schedule import lr_factor, muon_momentum

STEPS = 1000


def curve(optim, steps=STEPS, known=True):
    total = steps if known else None
    return [lr_factor(step / steps, step, total, optim) for step in range(steps)]


def momentum_curve(muon, steps=STEPS, known=True):
    total = steps if known else None
    return [muon_momentum(step / steps, step, total, muon) for step in range(steps)]


@pytest.mark.parametrize("known", [True, False])
def test_wsd_has_three_straight_parts(known):
    optim = from_defaults(
        OptimConfig, schedule="wsd", warmup=0.1, decay_fraction=0.4, final_lr_fraction=0.2
    )
    for step, found in enumerate(curve(optim, known=known)):
        warm = (step + 1) / 100
        decay = 0.2 + 0.8 * (STEPS - step) / 400
        assert found == pytest.approx(min(1.0, warm, decay), abs=1e-12)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant", "noam"])
@pytest.mark.parametrize("warmup", [0.0, 0.002, 0.3, 1, 20])
@pytest.mark.parametrize("steps", [1, 7, 5000])
def test_no_step_is_wasted_where_only_progress_is_known(schedule, warmup, steps):
    """Each step has a rate of its own, and the warm-up rises from a hundredth of the top."""
    if schedule == "noam" and warmup == 0:
        return
    optim = from_defaults(OptimConfig, schedule=schedule, warmup=warmup)
    values = curve(optim, steps=steps, known=False)
    assert min(values) > 0
    assert values[0] == {0.0: 1.0, 1: 1.0, 20: 0.05}.get(warmup, 0.01)
    if schedule == "constant" and warmup == 0.3:
        for step, found in enumerate(values[1:], start=1):
            expected = min(1.0, max(0.01, (step + 1) / (0.3 * steps)))
            assert found == pytest.approx(expected, rel=1e-9)


def test_wsd_holds_the_final_rate_at_the_end_and_moves_its_top():
    optim = from_defaults(
        OptimConfig, warmup=0.0, decay_fraction=0.5, hold_fraction=0.1, final_lr_fraction=0.2
    )
    for step in range(STEPS):
        peak = 1.0 if step < 300 else 1.5
        left = min(1.0, max(0.0, (900 - step) / 500))
        found = lr_factor(step / STEPS, step, STEPS, optim, peak=peak)
        assert found == pytest.approx(0.2 + (peak - 0.2) * left, abs=1e-12)


def test_cosine_starts_after_the_warm_up():
    optim = from_defaults(OptimConfig, schedule="cosine", warmup=0.1, final_lr_fraction=0.1)
    values = curve(optim)
    assert values[99] == 1.0
    assert values[100] == 1.0
    for step in range(100, STEPS):
        angle = math.pi * (step - 100) / 900
        assert values[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(angle)) / 2, abs=1e-12)


def test_constant_stays_up():
    values = curve(from_defaults(OptimConfig, schedule="constant", warmup=0.0))
    assert set(values) == {1.0}


def test_noam_is_the_2017_formula():
    model_dim, warmup = 512, 40
    peak = (model_dim * warmup) ** -0.5
    values = curve(from_defaults(OptimConfig, schedule="noam", warmup=warmup))
    for step in range(STEPS):
        s = step + 1
        expected = model_dim**-0.5 * min(s**-0.5, s * warmup**-1.5)
        assert peak * values[step] == pytest.approx(expected, rel=1e-12)


def test_holding_is_part_of_wsd_alone():
    with pytest.raises(ConfigError, match=r"optim\.hold_fraction=0\.1 has no effect"):
        from_defaults(OptimConfig, schedule="cosine", hold_fraction=0.1)
    with pytest.raises(ConfigError, match="overlap"):
        from_defaults(OptimConfig, warmup=0.1, decay_fraction=0.6, hold_fraction=0.4)


@pytest.mark.parametrize("settings", [{"warmup": 0.0}, {"final_lr_fraction": 0.1}])
def test_noam_refuses_what_it_cannot_use(settings):
    with pytest.raises(ConfigError, match="noam"):
        from_defaults(OptimConfig, schedule="noam", **settings)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant", "noam"])
@pytest.mark.parametrize("known", [True, False])
def test_warm_up_in_steps_ignores_the_length_of_the_run(schedule, known):
    optim = from_defaults(OptimConfig, schedule=schedule, warmup=20)
    for steps in (100, STEPS):
        values = curve(optim, steps, known)
        assert values[:20] == pytest.approx([(step + 1) / 20 for step in range(20)], abs=1e-12)


def test_known_length_never_wastes_a_step():
    for schedule in ("wsd", "cosine"):
        values = curve(from_defaults(OptimConfig, schedule=schedule, warmup=0.02))
        assert min(values) > 0
        assert max(values) == 1.0


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_rate_ends_at_its_final_fraction(schedule):
    optim = from_defaults(OptimConfig, schedule=schedule, final_lr_fraction=0.3)
    assert lr_factor(1.0, STEPS, STEPS, optim) == pytest.approx(0.3)
    assert lr_factor(1.7, STEPS, None, optim) == pytest.approx(0.3)


def test_cosine_shorter_than_its_warm_up_only_warms():
    values = curve(from_defaults(OptimConfig, schedule="cosine", warmup=50), steps=10)
    assert values == pytest.approx([(step + 1) / 50 for step in range(10)])


@pytest.mark.parametrize(("steps", "warm"), [(500, 100), (10_000, 300)])
@pytest.mark.parametrize("known", [True, False])
def test_momentum_rises_over_a_fifth_of_the_run_but_300_steps_at_most(steps, warm, known):
    values = momentum_curve(
        from_defaults(MuonConfig, momentum=0.95, momentum_min=0.85), steps, known
    )
    expected = [0.85 + 0.1 * min(1.0, step / warm) for step in range(steps)]
    assert values == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_momentum_falls_at_the_end(known):
    muon = from_defaults(
        MuonConfig, momentum=0.95, momentum_min=0.85, warmup_steps=0, cooldown_steps=50
    )
    values = momentum_curve(muon, known=known)
    assert values[:951] == pytest.approx([0.95] * 951)
    assert values[950:] == pytest.approx([0.95 - 0.1 * i / 50 for i in range(50)])
