from __future__ import annotations

import warnings
from typing import Any

import pytest

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test

test_a_wrong_value_is_refused = refusal_test(
    "nsa",
    *CONTROL_CASES,
    ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1, which rotary"),
    ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide model_cfg.num_heads=4"),
    ({"num_kv_heads": 0}, "num_kv_heads=0 must be at least 1"),
    ({"rope_theta": 1.0}, "rope_theta=1.0 must be greater than 1"),
    ({"compress_stride": 3}, "compress_stride=3 does not divide model_cfg.compress_block_size"),
    (
        {"selection_block_size": 18},
        "compress_stride=4 does not divide model_cfg.selection_block_size=18",
    ),
    ({"compress_stride": 0}, "compress_stride=0 must be at least 1"),
    (
        {"compress_block_size": 32},
        "compress_block_size=32 exceeds model_cfg.selection_block_size=16",
    ),
    (
        {"num_selected_blocks": 2},
        "num_selected_blocks=2 is less than model_cfg.init_blocks=1",
    ),
    ({"sliding_window_size": 0}, "sliding_window_size=0 must be at least 1"),
    ({"init_blocks": -1}, "init_blocks=-1 must be at least 0"),
    ({"local_blocks": 0}, "local_blocks=0 must be at least 1"),
    ({"gate_bias_init": [0.0, 0.0]}, r"gate_bias_init=\[0.0, 0.0\] must be 3 numbers"),
    ({"compress_mlp_ratio": 0.0}, "compress_mlp_ratio=0.0 must be positive"),
    (
        {"preset": "paper", "sliding_window_size": 32},
        "sliding_window_size=32 contradicts model_cfg.preset=paper, which has 512",
    ),
    (
        {"nsa_impl": "triton", "selection_block_size": 8},
        "nsa_impl=triton needs model_cfg.selection_block_size to be 16, 32, 64, 128, not 8",
    ),
    (
        {"nsa_impl": "triton", "num_heads": 16},
        "nsa_impl=triton needs heads of width 16, 32, 64, 128; model_dim / num_heads is 8",
    ),
)


def test_all_problems_come_at_once() -> None:
    assert_problems(
        "nsa", {"num_heads": 5, "compress_stride": 3, "seq_len": 0}, 4
    )  # the stride divides neither block


def test_sparse_attention_that_reads_everything_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="= 96 is no less than half of seq_len=192"):
        model_config("nsa", {"seq_len": 192})


@pytest.mark.parametrize(
    ("key", "value"), [("compress_mlp_ratio", 4.0), ("compress_residual_mean", False)]
)
def test_a_setting_without_effect_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}=.* has no effect with .*compress_mode=mean"):
        model_config("nsa", {"compress_mode": "mean", key: value})


def test_the_default_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_config("nsa")


def test_a_preset_sets_the_blocks() -> None:
    config = model_config("nsa", {"preset": "paper", "seq_len": 4096})
    assert (config.grid.window, config.grid.stride, config.grid.block) == (32, 16, 64)
    assert (config.grid.num_selected, config.sliding_window_size) == (16, 512)
    changes = {"preset": "nano_1k", "num_selected_blocks": 6, "seq_len": 1024}
    assert model_config("nsa", changes).grid.num_free == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model_cfg.kv_heads=2", "model_cfg.kv_heads is called model_cfg.num_kv_heads here"),
        ("model_cfg.nsa_impl=tritn", "did you mean 'triton'"),
    ],
)
def test_errors_name_the_right_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training_config(compose_config(["model=nsa", override]))
