from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest

from nanozoo_core.config import (
    TrainingConfig,
    compose_config,
    from_defaults,
    model_config,
    schema,
    training_config,
)
from nanozoo_core.errors import ConfigError

LADDER = {"num_inner_layers": 6, "num_ladder_levels": 3, "ladder_size": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_kv_heads": [1, 3]}, "stage 1: model_cfg.num_kv_heads=3 does not divide"),
        (
            {"nsa_cfg": {"compress_stride": [4, 3]}},
            "stage 1: model_cfg.nsa_cfg.compress_stride=3 does not divide "
            "model_cfg.nsa_cfg.compress_block_size=4",
        ),
        ({"nsa_cfg": {"num_selected_blocks": 1}}, "stage 1: .*num_selected_blocks=1 is less than"),
        ({"nsa_cfg": {"sliding_window_size": [16]}}, r"sliding_window_size=\[16\] must have 2 va"),
        ({"nsa_cfg": {"gate_bias_init": [0.0, 0.0]}}, "stage 1: .*nsa_cfg.gate_bias_init="),
        ({"nsa_cfg": {"compress_mode": "max"}}, "model_cfg.nsa_cfg.compress_mode=max must be one"),
        ({"num_kv_heads": [1]}, r"model_cfg.num_kv_heads=\[1\] must have 2 value"),
        ({"arch_layout": ["m1", ["Q2"], "m1"]}, "unknown letter 'Q'; there are m M t T n N"),
        ({"unpool": "mlp"}, "model_cfg.unpool=mlp needs chunks of one length, .*chunking=dynamic"),
        ({"pool_window": 4}, "model_cfg.pool_window=4 has no effect with model_cfg.chunk_pool=sel"),
        ({"pool_window": 0, "chunk_pool": "mlp"}, "model_cfg.pool_window=0 must be at least 1"),
        ({"pool_window": [4, 4], "chunk_pool": "mlp"}, "must have 1 value.*one for each chunking"),
        (LADDER | {"ladder_size": 12, "num_ladder_levels": 2}, "ladder_size=12 is no 2-th power"),
        (LADDER | {"ladder_size": 1}, "ladder_size=1 is no 3-th power of a whole stride"),
        ({"num_ladder_levels": 2}, "go together, each at least 1"),
        (LADDER | {"num_inner_layers": 0}, "go together, each at least 1"),
        (LADDER | {"arch_layout": ["m1", ["N2"], "m1"]}, "both name the layers"),
        (LADDER | {"num_main_layers": 2, "num_compression_layers": 1}, "both name the layers"),
        (LADDER | {"target_ratio": 3}, "model_cfg.target_ratio=3.0 contradicts"),
        (LADDER | {"chunking": "space"}, "knows one level of chunks"),
        ({"ctx_warmup": 512, "seq_len": 512}, "ctx_warmup=512 must be .* less than"),
        ({"capacity": 0.5, "chunking": "fixed"}, "model_cfg.capacity=0.5 has no effect"),
        ({"preset": "hnet_small"}, "must be one of hnet_x_nsa_small"),
        ({"n_inner_layers": 6}, "n_inner_layers is called model_cfg.num_inner_layers here"),
        ({"compression_decompress_size": 8}, "is called model_cfg.ladder_size here"),
        ({"n_compress_decompress_layers": 3}, "is called model_cfg.num_ladder_levels here"),
        ({"use_fp8": True}, "use_fp8 is not a setting of hnet_x_nsa"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("hnet_x_nsa", settings)


def test_a_pooled_model_may_have_a_capacity() -> None:
    assert model_config("hnet_x_nsa", {"chunk_pool": "mlp", "capacity": 0.5}).capacity == 0.5


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        model_config(
            "hnet_x_nsa",
            {"unpool": "mlp", "pool_window": 4, "num_kv_heads": [1, 3], "capacity": 2.0},
        )
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("size", "levels", "stride"), [(8, 3, 2), (27, 3, 3), (64, 2, 8), (5, 1, 5)]
)
def test_the_ladder_has_equal_strides(size: int, levels: int, stride: int) -> None:
    ladder = {"num_inner_layers": 2, "num_ladder_levels": levels, "ladder_size": size}
    config = model_config("hnet_x_nsa", dict(ladder))
    assert config.ratios == [stride] * levels
    assert config.num_chunkings == levels
    assert (config.chunking, config.chunk_pool, config.unpool) == ("fixed", "mlp", "mlp")
    assert [config.window_of_pool(stage) for stage in range(levels)] == [2 * stride] * levels


def test_the_fixed_preset_is_the_ladder_of_eight() -> None:
    config = model_config("hnet_x_nsa", {"preset": "hnet_x_nsa_fixed"})
    assert config.arch_layout == ["T1", ["T1", ["T1", ["N6"], "T1"], "T1"], "T1"]
    assert (config.model_dim, config.ratios) == (768, [2, 2, 2])
    other = model_config(
        "hnet_x_nsa", {"preset": "hnet_x_nsa_fixed", "arch_layout": ["m1", ["N2"], "m1"]}
    )
    assert (other.num_ladder_levels, other.chunking) == (None, "dynamic")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        LADDER,
        {"preset": "hnet_x_nsa_small"},
        {"preset": "hnet_x_nsa_2stage"},
        {"preset": "hnet_x_nsa_fixed"},
        {"chunk_pool": "mlp", "chunking": "fixed", "unpool": "mlp"},
        {"num_main_layers": 3, "num_compression_layers": 2},
    ],
    ids=str,
)
def test_a_stored_config_builds_itself(settings: dict[str, Any]) -> None:
    config = model_config("hnet_x_nsa", dict(settings))
    assert model_config("hnet_x_nsa", schema.to_dict(config)) == config


def test_the_shorthand_of_hnet_makes_sparse_layers() -> None:
    config = model_config("hnet_x_nsa", {"num_compression_layers": 2, "num_main_layers": 3})
    assert config.arch_layout == ["m2", ["N3"], "m2"]


def test_sizes_of_a_stage_without_sparse_layers_do_not_matter() -> None:
    config = model_config("hnet_x_nsa", {"nsa_cfg": {"compress_stride": [7, 2]}})
    assert config.sparse_stages == [1]
    assert config.nsa(1).grid.stride == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 256}, "stage 1 has about 43 positions, and sparse attention reads up to 40"),
        ({"arch_layout": ["m1", ["T2"], "m1"]}, "has no n or N: this is hnet"),
    ],
)
def test_what_makes_no_sense_is_warned_of(settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        model_config("hnet_x_nsa", settings)


def test_long_windows_pass_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_config("hnet_x_nsa", {"seq_len": 1024})
        model_config("hnet_x_nsa", {"preset": "hnet_x_nsa_small", "seq_len": 16384})


def test_a_curriculum_must_end_longer_than_it_begins() -> None:
    training = from_defaults(
        TrainingConfig,
        model="hnet_x_nsa",
        model_cfg={},
        data={"tokenizer": "bytes", "seq_len": 1024},
    )
    (problem,) = model_config("hnet_x_nsa", {"ctx_warmup": 1024, "seq_len": 2048}).check_training(
        training
    )
    assert "ctx_warmup=1024 must be less than data.seq_len=1024" in problem
    assert model_config("hnet_x_nsa", {"ctx_warmup": 512}).check_training(training) == []


def test_the_command_line_refuses_what_nsa_does() -> None:
    overrides = ["model=hnet_x_nsa", "model_cfg.nsa_cfg.compress_stride=3"]
    with pytest.raises(ConfigError, match=r"stage 1: model_cfg\.nsa_cfg\.compress_stride=3"):
        training_config(compose_config(overrides))


def test_config_does_not_load_torch() -> None:
    code = "import sys, nanozoo_hnet_x_nsa.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
