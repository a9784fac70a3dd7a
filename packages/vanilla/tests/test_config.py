import dataclasses

import pytest

from nanozoo_core.config import (
    TrainingConfig,
    compose_config,
    from_defaults,
    model_config,
    training_config,
)
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import assert_other_names_are_refused_with_ours
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test
from nanozoo_vanilla.config import PRESETS


def make_config(**changes):
    return model_config("vanilla", changes)


def training(**changes):
    return from_defaults(TrainingConfig, model="vanilla", model_cfg={}, **changes)


def test_the_first_form_is_that_of_2017():
    assert dataclasses.asdict(make_config(preset="v0").switches) == {
        "position": "sinusoidal",
        "norm_position": "post",
        "norm": "layer",
        "qk_norm": False,
        "activation": "relu",
        "bias": True,
        "attn_bias": False,
        "scale_embedding": True,
        "norm_embedding": False,
        "tie_embeddings": True,
        "init": "xavier",
    }


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("v0", "v1", {"attn_bias": True}),
        ("v1", "v2", {"activation": "gelu_tanh"}),
        ("v2", "v3", {"position": "learned"}),
        ("v3", "v4", {"norm_position": "pre"}),
        ("v4", "v5", {"scale_embedding": False}),
        ("v5", "v6", {"init": "gpt2"}),
        ("v6", "v7", {"bias": False, "attn_bias": False}),
        ("v7", "v8", {"norm": "rms"}),
        ("v8", "v9", {"position": "rope"}),
        ("v9", "v10", {"qk_norm": True}),
        ("v10", "v11", {"activation": "relu2"}),
        ("v11", "v12", {"tie_embeddings": False}),
        ("v12", "v13", {"norm_embedding": True}),
        ("v13", "v14", {"init": "unit_embedding"}),
        ("v14", "v15", {"init": "zero_outputs"}),
        ("v15", "v16", {"init": "small_head"}),
        ("v16", "control", {"init": "zero_out"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_step_of_the_walk_changes_the_named_keys_alone(before, after, change):
    old = dataclasses.asdict(make_config(preset=before).switches)
    new = dataclasses.asdict(make_config(preset=after).switches)
    assert {key: value for key, value in new.items() if value != old[key]} == change


def test_the_walk_has_no_other_preset():
    assert list(PRESETS) == [*(f"v{i}" for i in range(17)), "control"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position", "rope"),
        ("norm_position", "pre"),
        ("norm", "rms"),
        ("qk_norm", True),
        ("activation", "relu2"),
        ("bias", False),
        ("attn_bias", False),
        ("scale_embedding", False),
        ("norm_embedding", True),
        ("tie_embeddings", False),
        ("init", "zero_out"),
    ],
)
def test_a_switch_beside_a_preset_is_refused(key, value):
    shown = str(value).lower() if isinstance(value, bool) else value
    message = f"model_cfg.{key}={shown} is decided by model_cfg.preset=v7; leave it null"
    with pytest.raises(ConfigError, match=message):
        make_config(preset="v7", **{key: value})


def test_custom_starts_from_the_control():
    assert make_config(preset="custom").switches == PRESETS["control"]
    changed = make_config(preset="custom", norm="layer", bias=True)
    assert changed.switches == dataclasses.replace(PRESETS["control"], norm="layer", bias=True)


test_a_wrong_value_is_refused = refusal_test(
    "vanilla",
    *CONTROL_CASES,
    ({"model_dim": -8}, "model_dim=-8 must be at least 1"),
    ({"preset": "v0", "dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"preset": "v0", "norm_eps": 0.0}, "norm_eps=0.0 must be positive or null"),
    ({"pad_vocab_to": 0}, "pad_vocab_to=0 must be at least 1"),
    ({"dropout": 0.1}, "dropout=0.1 does not reach model_cfg.preset=control"),
    ({"norm_eps": 1e-5}, "norm_eps=1e-05 does not reach model_cfg.preset=control"),
    (
        {"preset": "v0", "model_dim": 33, "num_heads": 3},
        "model_dim=33 is odd, and sinusoidal positions need pairs of channels; use 34",
    ),
    (
        {"model_dim": 36, "num_heads": 4},
        "model_dim=36 over model_cfg.num_heads=4 makes heads of width 9, and rotary",
    ),
    (
        {"preset": "custom", "tie_embeddings": True},
        "init=zero_out draws embeddings of unit variance, too large for a head",
    ),
    (
        {"preset": "custom", "tie_embeddings": True, "init": "unit_embedding"},
        "init=unit_embedding draws embeddings of unit variance, too large for a head",
    ),
    (
        {"preset": "custom", "scale_embedding": True},
        "scale_embedding=true has no effect with model_cfg.norm_embedding=true",
    ),
    (
        {"preset": "custom", "position": "learned", "rope_base": 5e4},
        "rope_base=50000.0 has no effect with model_cfg.position=learned; leave it at 10000",
    ),
)


def test_all_problems_come_at_once():
    assert_problems(
        "vanilla", {"num_heads": 5, "dropout": 2.0, "seq_len": 0, "norm": "layer"}, 5
    )  # dropout twice: out of range, and not the control's


@pytest.mark.parametrize(
    ("preset", "eps"), [("v0", 1e-5), ("v7", 1e-5), ("v8", 1e-6), ("control", 1e-6)]
)
def test_the_norm_decides_its_epsilon(preset, eps):
    assert make_config(preset=preset).eps == eps


def test_an_epsilon_of_ones_own_wins():
    assert make_config(preset="v0", norm_eps=1e-3).eps == 1e-3


def test_names_of_other_code_are_refused_with_ours():
    assert_other_names_are_refused_with_ours("vanilla", {})


@pytest.mark.parametrize("preset", ["v3", "v8"])
def test_windows_longer_than_a_position_table_are_refused(preset):
    config = make_config(preset=preset, seq_len=128)
    assert config.check_training(training(data={"seq_len": 128})) == []
    (problem,) = config.check_training(training(data={"seq_len": 256}))
    assert "data.seq_len=256 is longer" in problem
    assert "model_cfg.seq_len=128" in problem


@pytest.mark.parametrize("preset", ["v0", "v9", "control"])
def test_positions_by_formula_have_no_longest_window(preset):
    config = make_config(preset=preset, seq_len=128)
    assert config.check_training(training(data={"seq_len": 256})) == []


@pytest.mark.parametrize("preset", ["v0", "v1", "v2", "v3"])
def test_post_norm_without_warmup_is_refused_unless_asked_for(preset):
    cold = training(optim={"warmup": 0})
    (problem,) = make_config(preset=preset).check_training(cold)
    assert problem.startswith(f"optim.warmup=0 with model_cfg.preset={preset}")
    assert make_config(preset=preset, allow_no_warmup=True).check_training(cold) == []
    assert make_config(preset=preset).check_training(training()) == []


@pytest.mark.parametrize("preset", ["v4", "control"])
def test_pre_norm_needs_no_warmup(preset):
    cold = training(optim={"warmup": 0})
    assert make_config(preset=preset).check_training(cold) == []


def test_the_command_line_refuses_post_norm_without_warmup():
    overrides = ["model=vanilla", "model_cfg.preset=v0", "optim.warmup=0"]
    with pytest.raises(ConfigError, match=r"optim\.warmup=0 with model_cfg\.preset=v0"):
        training_config(compose_config(overrides))


def test_a_misspelt_preset_gets_its_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'control'"):
        model_config("vanilla", {"preset": "contrl"})
