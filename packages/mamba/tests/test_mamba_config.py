import dataclasses

import pytest

from nanozoo_core.config import TrainingConfig, from_defaults, model_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import assert_problems, refusal_test
from nanozoo_mamba.config import PRESETS


def test_defaults_are_those_of_the_tiny_model():
    config = model_config("mamba")
    assert config.shape == (8, 128)
    assert (config.d_state, config.time_step_rank) == (16, 8)
    assert (config.head_dim, config.num_groups, config.chunk_size) == (None, None, None)


def test_the_second_variant_has_defaults_of_its_own():
    config = model_config("mamba", {"variant": "mamba2"})
    assert (config.d_state, config.time_step_rank) == (64, None)
    assert config.heads == (32, 1, [1.0, 16.0], 32)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_a_preset_sets_the_published_shape(name, variant):
    config = model_config("mamba", {"preset": name, "variant": variant})
    assert config.shape == PRESETS[name]
    assert config.d_state == {"mamba1": 16, "mamba2": 128}[variant]
    assert config.head_dim == {"mamba1": None, "mamba2": 64}[variant]


@pytest.mark.parametrize("rank", [None, "auto"])
def test_the_rank_follows_the_width_rounded_up(rank):
    assert model_config("mamba", {"model_dim": 130, "time_step_rank": rank}).time_step_rank == 9


@pytest.mark.parametrize("settings", [{}, {"variant": "mamba2"}, {"preset": "130m"}])
def test_a_resolved_config_builds_itself(settings):
    config = model_config("mamba", settings)
    assert dataclasses.replace(config, vocab_size=100).shape == config.shape


MAMBA2 = {"variant": "mamba2"}


test_a_wrong_value_is_refused = refusal_test(
    "mamba",
    ({"num_layers": 0}, "num_layers=0 must be at least 1"),
    ({"model_dim": 0}, "model_dim=0 must be at least 1"),
    ({"vocab_size": 1}, "vocab_size=1 must be at least 2 or null"),
    ({"seq_len": 0}, "seq_len=0 must be at least 1 or null"),
    ({"expand": 0}, "expand=0 must be at least 1"),
    ({"mlp_dim": -1}, "mlp_dim=-1 must be at least 0"),
    ({"d_state": 0}, "d_state=0 must be at least 1"),
    ({"d_state": 257}, "d_state=257 must be at most 256"),
    ({"d_conv": 5}, "d_conv=5 must be 2, 3 or 4"),
    ({"norm_eps": 0.0}, "norm_eps=0.0 must be positive"),
    ({"initializer_range": 0.0}, "initializer_range=0.0 must be positive"),
    ({"time_step_floor": 0.0}, "time_step_floor=0.0 must be positive"),
    ({"time_step_floor": 0.2}, "time_step_floor=0.2 must not exceed .*time_step_max=0.1"),
    ({"time_step_min": 0.1}, "time_step_min=0.1 must be positive and less than .*_max=0.1"),
    ({"time_step_min": 0.0}, "time_step_min=0.0 must be positive"),
    ({"time_step_rank": 0}, "time_step_rank=0 must be at least 1"),
    ({"time_step_scale": 0.0}, "time_step_scale=0.0 must be positive"),
    ({"preset": "130m", "num_layers": 4}, "num_layers=4 contradicts model_cfg.preset=130m"),
    ({"head_dim": 32}, "head_dim=32 has no effect with model_cfg.variant=mamba1"),
    ({"num_groups": 1}, "num_groups=1 has no effect with model_cfg.variant=mamba1"),
    ({"chunk_size": 32}, "chunk_size=32 has no effect with model_cfg.variant=mamba1"),
    ({"A_init_range": [1.0, 2.0]}, r"A_init_range=\[1.0, 2.0\] has no effect with"),
    (MAMBA2 | {"time_step_rank": 4}, "time_step_rank=4 has no effect with .*variant=mamba2"),
    (MAMBA2 | {"time_step_scale": 1.0}, "time_step_scale=1.0 has no effect with"),
    (MAMBA2 | {"time_step_init_scheme": "constant"}, "time_step_init_scheme=constant has no"),
    (MAMBA2 | {"head_dim": 48}, "head_dim=48 does not divide .*=256; use 1, 2, 4, 8"),
    (MAMBA2 | {"num_groups": 3}, "num_groups=3 does not divide the 8 heads; use 1, 2, 4, 8"),
    (MAMBA2 | {"A_init_range": [2.0, 1.0]}, r"A_init_range=\[2.0, 1.0\] must be two positive"),
    (MAMBA2 | {"chunk_size": 48}, "chunk_size=48 must be a power of 2"),
)


def test_all_problems_come_at_once():
    assert_problems("mamba", {"d_state": 300, "d_conv": 9, "head_dim": 4, "expand": 0}, 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_layers", "num_layers"),
        ("d_model", "model_dim"),
        ("headdim", "head_dim"),
        ("ngroups", "num_groups"),
        ("d_intermediate", "mlp_dim"),
        ("dt_rank", "time_step_rank"),
    ],
)
def test_names_of_other_code_are_refused_with_ours(old, new):
    with pytest.raises(ConfigError, match=rf"model_cfg.{old} is called model_cfg.{new} here"):
        model_config("mamba", {old: 4})


@pytest.mark.parametrize("key", ["num_heads", "hidden_act", "fused_add_norm", "pad_token_id"])
def test_keys_without_effect_are_unknown(key):
    with pytest.raises(ConfigError, match=rf"model_cfg\.{key} is not a setting of mamba"):
        model_config("mamba", {key: 4})


def test_a_length_other_than_the_data_is_refused():
    training = from_defaults(TrainingConfig, model="mamba", model_cfg={}, data={"seq_len": 256})
    assert model_config("mamba", {"seq_len": 256}).check_training(training) == []
    (problem,) = model_config("mamba", {"seq_len": 128}).check_training(training)
    assert "model_cfg.seq_len=128" in problem
