from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nanozoo_core.config import (
    DataConfig,
    TrainingConfig,
    compose_config,
    from_defaults,
    model_config,
    training_config,
)
from nanozoo_core.errors import ConfigError
from nanozoo_megabyte.config import TINY


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"seq_len": 1022},
            "seq_len=1022 must be a multiple of model_cfg.patch_size=4, at .* 1024",
        ),
        ({"seq_len": 4}, "seq_len=4 must be .* at least two patches; use 8"),
        ({"num_global_heads": 3}, "num_global_heads=3 does not divide the global width, .* = 128"),
        ({"num_local_heads": 5}, "num_local_heads=5 does not divide model_cfg.local_dim=96; use 1"),
        (
            {"num_local_heads": 32, "pos_emb": "rope"},
            "num_local_heads=32 makes heads of width 3, and model_cfg.pos_emb=rope needs pairs",
        ),
        (
            {"global_byte_dim": 33, "pos_emb": "both"},
            "num_global_heads=4 makes heads of width 33, and model_cfg.pos_emb=both needs pairs",
        ),
        (
            dict.fromkeys(TINY, 2) | {"preset": "megabyte_small"},
            "preset=megabyte_small sets nothing, as all of patch_size, .* are given; leave it out",
        ),
        ({"cross_patch": 5}, r"cross_patch=5 must be in 0 \.\. model_cfg.patch_size=4"),
        ({"cross_patch": -1}, "cross_patch=-1 must be in 0"),
        (
            {"local_backend": "triton", "patch_size": 33},
            "patch_size=33 must be at most 32 with model_cfg.local_backend=triton; use torch",
        ),
        (
            {"local_backend": "triton", "local_dim": 129, "num_local_heads": 1},
            "local_dim / model_cfg.num_local_heads = 129 must be at most 128 with",
        ),
        ({"local_backend": "triton", "cross_patch": 1}, "cross_patch=1 must be at most 0 with"),
        ({"local_backend": "sdpa"}, "local_backend=sdpa must be one of torch, triton"),
        ({"patch_size": 1, "eval_strided": True}, "eval_strided=true shifts a window by half"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"num_local_layers": 0}, "num_local_layers=0 must be at least 1"),
        ({"num_global_layers": 0}, "num_global_layers=0 must be at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 leaves no channel"),
        ({"vocab_size": 1}, "vocab_size=1 must be at least 2"),
        ({"lr_multipliers": [1.0]}, r"lr_multipliers=\[1.0\] must be two positive numbers"),
        ({"lr_multipliers": [1.0, 0.0]}, r"lr_multipliers=\[1.0, 0.0\] must be two positive"),
        ({"pos_emb": "rotary"}, "pos_emb=rotary must be one of learned, rope, both"),
        ({"local_first_input": "prev"}, "did you mean 'prev_byte'"),
        ({"preset": "small"}, "preset=small must be one of megabyte_small, megabyte_seed"),
        ({"d_local": 96}, "d_local is called model_cfg.local_dim here"),
        ({"d_global_pre_patch": 32}, "is called model_cfg.global_byte_dim here"),
        ({"n_layers_d_global": 3}, "is called model_cfg.num_global_layers here"),
        ({"n_layers_d_local": 3}, "is called model_cfg.num_local_layers here"),
        ({"global_n_heads": 3}, "is called model_cfg.num_global_heads here"),
        ({"local_n_heads": 3}, "is called model_cfg.num_local_heads here"),
        ({"d_mult": 4}, "is called model_cfg.mlp_ratio here"),
        ({"is_causal": True}, "is_causal is not a setting of megabyte"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("megabyte", settings)


def test_all_problems_come_at_once() -> None:
    wrong = {"num_local_heads": 5, "num_global_heads": 3, "cross_patch": 9}
    with pytest.raises(ConfigError) as caught:
        model_config("megabyte", wrong | {"lr_multipliers": []})
    assert len(caught.value.problems) == 4


def test_patches_of_one_byte_are_legal() -> None:
    assert model_config("megabyte", {"patch_size": 1}).global_dim == 32


def test_given_sizes_win_over_the_preset() -> None:
    config = model_config("megabyte", {"preset": "megabyte_small", "patch_size": 16})
    assert (config.global_dim, config.local_dim, config.num_global_heads) == (1536, 512, 12)


@pytest.mark.parametrize(
    ("settings", "data", "named"),
    [
        ({"seq_len": 512}, {"tokenizer": "bytes", "seq_len": 1024}, "data.seq_len=1024"),
        ({"vocab_size": 257}, {"tokenizer": "bytes"}, "model_cfg.vocab_size=257"),
    ],
)
def test_settings_that_clash_with_the_data_are_named(
    settings: dict[str, Any], data: dict[str, Any], named: str
) -> None:
    training = from_defaults(
        TrainingConfig, model="megabyte", model_cfg={}, data=from_defaults(DataConfig, **data)
    )
    (problem,) = model_config("megabyte", settings).check_training(training)
    assert named in problem


def test_the_command_line_refuses_windows_that_are_no_whole_patches() -> None:
    overrides = ["model=megabyte", "data.seq_len=1001"]
    with pytest.raises(ConfigError, match=r"seq_len=1001 must be a multiple"):
        training_config(compose_config(overrides))


def test_config_does_not_load_torch() -> None:
    code = "import sys, nanozoo_megabyte.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
