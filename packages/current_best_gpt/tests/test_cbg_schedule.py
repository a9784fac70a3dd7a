"""The schedule of the record, tabulated, and laws of its parts."""

import math
from pathlib import Path

import pytest

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.optim.schedule import lr_factor, muon_momentum
from nanozoo_current_best_gpt import schedule

RECIPE = Path(__file__).parents[3] / "configs" / "current_best_gpt.yaml"
STEPS = 1285

# step: lr multiplier, momentum, (short, long), weights of the next tokens, of the prefix, tied
TABLE = {
    0: (1.0, 0.85, (128, 384), [1, 0.5, 0.25], 0.25, True),
    299: (1.0, 0.85 + 0.1 * 299 / 300, (128, 384), [1, 0.5, 0.25 * 124 / 423], 0.25, True),
    300: (1.0, 0.95, (128, 384), [1, 0.5, 0.25 * 123 / 423], 0.25, True),
    422: (1.0, 0.95, (128, 384), [1, 0.5, 0.25 * 1 / 423], 0.25, True),
    423: (1.52, 0.95, (384, 896), [1, 0.5], 0.25, True),
    507: (1.52, 0.95, (384, 896), [1, 0.5 * 340 / 424], 0.25 * 340 / 424, True),
    508: (1.52, 0.95, (384, 896), [1, 0.5 * 339 / 424], 0.25 * 339 / 424, True),
    846: (1.52, 0.95, (384, 896), [1, 0.5 / 424], 0.25 / 424, True),
    847: (1.73, 0.95, (640, 1408), [1], 0.0, True),
    848: (1.73, 0.95, (640, 1408), [1], 0.0, False),
    1269: (1.73, 0.85 + 0.1 * 16 / 50, (640, 1408), [1], 0.0, False),
    1270: (1.0, 0.85 + 0.1 * 15 / 50, (768, 1664), [1], 0.0, False),
    1284: (1.0, 0.85 + 0.1 * 1 / 50, (768, 1664), [1], 0.0, False),
}


@pytest.fixture(scope="module")
def recipe():
    config = training_config(compose_config(recipe=RECIPE))
    model_cfg = model_config(config.model, config.model_cfg, seq_len=2048, vocab_size=50257)
    return config, model_cfg


@pytest.mark.parametrize("step", TABLE)
def test_the_recipe_follows_the_record(recipe, step):
    training, config = recipe
    peak, momentum, windows, weights, prefix, tied = TABLE[step]
    progress = step / STEPS
    stage = schedule.stage_at(config, progress)
    fallen = min(max((step - 508) / (1270 - 508), 0), 1)
    expected = peak * (1 - fallen) + 0.15 * fallen
    found_peak = schedule.lr_peak(config, progress)
    factor = lr_factor(progress, step, STEPS, training.optim, peak=found_peak)
    assert factor == pytest.approx(expected, abs=2e-3)
    found = muon_momentum(progress, step, STEPS, training.optim.muon)
    assert found == pytest.approx(momentum, abs=1e-9)
    assert schedule.windows(config, stage) == windows
    assert schedule.mtp_weights(config, progress) == pytest.approx(weights, abs=1e-4)
    assert schedule.prefix_weight(config, progress) == pytest.approx(prefix, abs=1e-4)
    assert schedule.is_tied(config, progress) == tied


def test_after_training_only_the_long_window_grows(recipe):
    _, config = recipe
    last, after = config.num_stages - 1, config.num_stages
    assert schedule.windows(config, after) == (768, 2560)
    assert schedule.rotary_frequencies(config, after) == schedule.rotary_frequencies(config, last)
    assert schedule.attention_scale(config, after) == schedule.attention_scale(config, last)


def test_scores_grow_with_the_window_as_the_record_has_it(recipe):
    _, config = recipe
    found = [schedule.attention_scale(config, stage) for stage in range(4)]
    assert found == pytest.approx([0.1, 0.117, 0.128, 0.132], abs=1e-3)


def make_config(**changes):
    return model_config("current_best_gpt", changes, seq_len=64, vocab_size=300)


def test_frequencies_fall_from_one_to_the_base():
    config = make_config(model_dim=256, num_heads=4, rope_base=100.0)
    found = schedule.rotary_frequencies(config, 0)
    assert len(found) == 16
    assert found == pytest.approx([100 ** (-i / 15) for i in range(16)])


def test_a_longer_window_slows_slow_rotations_alone():
    changes = {"model_dim": 256, "num_heads": 2, "rope_base": 1e4, "yarn": True}
    config = make_config(windows=((100, 400), (100, 800)), **changes)
    before = schedule.rotary_frequencies(config, 0)
    after = schedule.rotary_frequencies(config, 1)
    for old, new in zip(before, after, strict=True):
        rotations = 400 * old / (2 * math.pi)
        if rotations > 32:
            assert new == old
        elif rotations < 1:
            assert new == pytest.approx(old / 2)
        else:
            assert old / 2 < new < old
    assert min(400 * w / (2 * math.pi) for w in before) < 1
    assert max(400 * w / (2 * math.pi) for w in before) > 32


def test_a_list_of_one_holds_for_all_stages():
    config = make_config(stage_starts=(0.0, 0.2, 0.7), windows=((8, 40),))
    assert {schedule.windows(config, stage) for stage in range(4)} == {(8, 40)}
    assert [schedule.stage_at(config, p) for p in (0.0, 0.19, 0.2, 0.69, 0.7, 1.0)] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip
