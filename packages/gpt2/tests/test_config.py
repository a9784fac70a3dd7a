import dataclasses

import pytest
from gpt2_models import make_config

from nanozoo_core.config import TrainingConfig, from_defaults
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import assert_other_names_are_refused_with_ours
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test
from nanozoo_gpt2.config import PRESETS


def test_without_preset_it_is_tiny():
    assert make_config().shape == (4, 4, 128)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_shape(name):
    assert make_config(preset=name).shape == PRESETS[name]


@pytest.mark.parametrize("key", ["num_layers", "model_dim", "num_heads"])
def test_a_preset_refuses_another_shape(key):
    with pytest.raises(ConfigError, match=rf"model_cfg.{key}=4 contradicts model_cfg.preset=gpt2,"):
        make_config(preset="gpt2", **{key: 4})


def test_a_preset_accepts_its_own_shape_again():
    config = make_config(preset="gpt2-medium")
    assert dataclasses.replace(config, vocab_size=100).shape == config.shape


test_a_value_out_of_range_is_refused = refusal_test(
    "gpt2",
    *CONTROL_CASES,
    ({"model_dim": -8}, "model_dim=-8 must be at least 1"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"pad_vocab_to": 0}, "pad_vocab_to=0 must be at least 1"),
)


def test_all_problems_come_at_once():
    assert_problems("gpt2", {"num_heads": 5, "dropout": 2.0, "seq_len": 0}, 3)


def test_names_of_other_code_are_refused_with_ours():
    assert_other_names_are_refused_with_ours("gpt2", {"d_mult": "mlp_ratio"})


def test_windows_longer_than_the_position_table_are_refused():
    training = from_defaults(TrainingConfig, model="gpt2", model_cfg={}, data={"seq_len": 256})
    assert make_config(seq_len=256).check_training(training) == []
    (problem,) = make_config(seq_len=128).check_training(training)
    assert "data.seq_len=256" in problem
    assert "model_cfg.seq_len=128" in problem


def test_six_heads_at_gpt2_width_are_pointed_out():
    with pytest.warns(UserWarning, match="GPT-2 has 12 heads of width 64"):
        make_config(model_dim=768, num_heads=6)
