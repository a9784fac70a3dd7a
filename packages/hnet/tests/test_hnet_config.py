from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from nanozoo_core.config import DataConfig, TrainingConfig, from_defaults, model_config
from nanozoo_core.errors import ConfigError
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.layout import parse_layout, parse_network

LETTERS = HNetConfig.LETTERS
TWO_STAGES = {
    "arch_layout": ["m1", ["T1m1", ["T1"], "m1T1"], "m1"],
    "model_dim": [64, 96, 128],
    "mlp_dim": 256,
    "num_heads": [2, 3, 4],
    "rotary_emb_dim": 16,
    "window_size": -1,
}


def test_layout_letters_expand_in_order() -> None:
    layers = parse_network("T1m3", LETTERS)
    assert [(layer.letter, layer.has_mlp) for layer in layers] == [("t", True)] + [("m", False)] * 3


def test_height_counts_residual_additions() -> None:
    outer, middle, main = parse_layout(["m3", ["T1m3", ["T10"], "m3T1"], "m3"], LETTERS)
    assert (outer.height, middle.height, main.height) == (6, 10, 20)


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (["m4", ["T12"]], "must be"),
        ("m4", "must be"),
        (["m4", "T12", "m4"], "must be"),
        (["m4x", ["T12"], "m4"], "letters with counts"),
        (["4", ["T12"], "m4"], "letters with counts"),
        (["", ["T12"], "m4"], "letters with counts"),
        (["m0", ["T12"], "m4"], "start at 1"),
        (["q4", ["T12"], "m4"], "unknown letter 'q'"),
        (["m4", [["T12"]], "m4"], "must be"),
    ],
)
def test_bad_layouts_are_refused(layout: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model_config("hnet", {"arch_layout": layout})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"arch_layout": TWO_STAGES["arch_layout"]}, "model_cfg.model_dim"),
        ({"arch_layout": ["T2"]}, "no chunking"),
        ({"model_dim": [128, 96]}, "must not fall"),
        ({"num_heads": 5}, "model_cfg.num_heads=5 does not divide"),
        ({"rotary_emb_dim": [15, 16]}, r"model_cfg.rotary_emb_dim\[0\]=15"),
        ({"rotary_emb_dim": [64, 16]}, r"model_cfg.rotary_emb_dim\[0\]=64"),
        ({"window_size": [0, -1]}, r"model_cfg.window_size\[0\]=0"),
        ({"mlp_dim": [0, 0]}, r"model_cfg.mlp_dim\[1\]=0"),
        ({"ssm_cfg": {"head_dim": 36}}, "model_cfg.ssm_cfg.head_dim=36 does not divide"),
        ({"ssm_cfg": {"d_state": 0}}, "model_cfg.ssm_cfg.d_state=0"),
        ({"target_ratio": [1.0]}, "must exceed 1"),
        ({"target_ratio": [3.0, 3.0]}, r"model_cfg.target_ratio=\[3.0, 3.0\] must have 1"),
        ({"target_ratio": [6.0], "chunking": "space"}, "model_cfg.chunking=space"),
        ({"target_ratio": [2.5], "chunking": "fixed"}, "whole numbers"),
        ({"compression_ratio": 0.3, "chunking": "fixed"}, "whole numbers"),
        ({**TWO_STAGES, "chunking": "space"}, "one level of chunks"),
        ({"capacity": 0.5, "chunking": "fixed"}, "model_cfg.capacity=0.5"),
        ({"capacity": 1.5}, "model_cfg.capacity=1.5"),
        ({"lr_multipliers": [1.0]}, "model_cfg.lr_multipliers"),
        ({"lr_multipliers": [1.0, 0.0]}, "model_cfg.lr_multipliers"),
        ({"lr_multipliers": "automatic"}, "model_cfg.lr_multipliers"),
        ({"vocab_size": 1}, "model_cfg.vocab_size=1"),
        ({"target_ratio": 6.0, "compression_ratio": 0.5}, "same thing"),
        ({"compression_ratio": 1.0}, "model_cfg.compression_ratio=1.0"),
        (
            {
                "num_compression_layers": 4,
                "num_main_layers": 12,
                "arch_layout": ["m1", ["T2"], "m1"],
            },
            "both name the layers",
        ),
        ({"num_main_layers": 2}, "model_cfg.num_main_layers=2: .* go together"),
        ({"num_compression_layers": 0, "num_main_layers": 2}, "must be at least 1"),
        ({"preset": "hnet_2stages"}, "must be one of hnet_small"),
        ({"preset": "hnet_2stage", "model_dim": [64, 64]}, "must have 3 value"),
        ({"boundary_clamp": 0.5}, "model_cfg.boundary_clamp"),
        ({"ratio_loss_coef": -1}, "model_cfg.ratio_loss_coef"),
        (
            {"chunking": "fixed", "ratio_loss_coef": 0.1},
            "ratio_loss_coef=0.1 has no effect with model_cfg.chunking=fixed; leave it out",
        ),
        ({"chunking": "space", "boundary_clamp": 0.01}, "boundary_clamp=0.01 has no effect"),
        ({"tie_embeddings": True, "embed_std": 0.1}, "embed_std=0.1 has no effect"),
        (
            {"lr_multipliers": [1.0, 1.0], "bytes_per_token_ref": 4.0},
            "bytes_per_token_ref=4.0 has no effect with model_cfg.lr_multipliers",
        ),
        ({"chunking": "dynamik"}, "did you mean 'dynamic'"),
        ({"d_model": 128}, "model_dim"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        model_config("hnet", settings)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        model_config("hnet", {"num_heads": 5, "capacity": 2.0, "lr_multipliers": [1.0]})
    assert len(caught.value.problems) >= 3


def training(**data: object) -> TrainingConfig:
    return from_defaults(
        TrainingConfig, model="hnet", model_cfg={}, data=from_defaults(DataConfig, **data)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "data", "named"),
    [
        (
            {"seq_len": 512},
            {"tokenizer": "bytes", "seq_len": 1024},
            "data.seq_len=1024",
        ),
        (
            {"vocab_size": 256},
            {"tokenizer": "bytes"},
            "model_cfg.vocab_size=256",
        ),
        (
            {"chunking": "space"},
            {"tokenizer": "bpe"},
            "model_cfg.chunking=space",
        ),
    ],
)
def test_settings_that_clash_with_the_data_are_named(
    settings: dict[str, Any], data: dict[str, object], named: str
) -> None:
    config = model_config("hnet", settings)
    assert any(named in problem for problem in config.check_training(training(**data)))


def test_default_settings_fit_byte_data() -> None:
    assert model_config("hnet").check_training(training(tokenizer="bytes", seq_len=1024)) == []


def test_shorthand_builds_the_layout() -> None:
    config = model_config("hnet", {"num_compression_layers": 4, "num_main_layers": 12})
    assert config.arch_layout == ["m4", ["T12"], "m4"]
    assert replace(config, chunking="fixed").arch_layout == config.arch_layout


def test_given_sizes_win_over_the_preset() -> None:
    settings = {"preset": "hnet_2stage", "window_size": 64, "ssm_cfg": {"d_state": 16}}
    config = model_config("hnet", settings)
    assert config.per_stage("window_size") == [64, 64, 64]
    assert (config.ssm("d_state"), config.ssm("chunk_size")) == (16, 256)
    assert config.per_stage("model_dim") == [384, 512, 768]


def test_one_number_stands_for_all_stages() -> None:
    config = model_config("hnet", {"model_dim": 128, "num_heads": 4})
    assert config.per_stage("model_dim") == [128, 128]


def test_compression_ratio_is_spread_over_the_chunkings() -> None:
    assert model_config("hnet", {"compression_ratio": 0.5}).ratios == [2.0]
    config = model_config("hnet", {**TWO_STAGES, "compression_ratio": 1 / 9})
    assert config.ratios == [3.0, 3.0]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [(None, [2.48, 0.88]), ("hnet_small", [2.63, 0.88]), ("hnet_2stage", [3.03, 1.52, 0.71])],
)
def test_automatic_lr_multipliers(preset: Any, expected: list[float]) -> None:
    config = model_config("hnet", {"preset": preset})
    assert config.stage_lr_multipliers() == pytest.approx(expected, abs=0.006)


def test_lr_multipliers_without_width_follow_the_batch_alone() -> None:
    config = model_config("hnet", {"preset": "hnet_2stage"})
    multipliers = config.stage_lr_multipliers(by_width=False)
    assert [a / b for a, b in pairwise(multipliers)] == pytest.approx([math.sqrt(3)] * 2)


def test_given_lr_multipliers_are_taken() -> None:
    config = model_config("hnet", {"lr_multipliers": [2.0, 1.0]})
    assert config.stage_lr_multipliers() == config.stage_lr_multipliers(by_width=False) == [2, 1]


def test_config_does_not_load_torch() -> None:
    import subprocess
    import sys

    code = "import sys, nanozoo_hnet.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
