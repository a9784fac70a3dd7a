"""Every refusal names its key, its value and what would be right."""

from __future__ import annotations

import warnings

import pytest

from nanozoo_core.config import model_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.diffusion.laws import ConfigLaws


class TestConfig(ConfigLaws):
    model = "mdl"
    refusals = (
        ({"t_min": 0.5}, r"t_min=0.5 must be in \[0, 0.5\)"),
        ({"continuous_time": False}, r"continuous_time=false needs .*num_timesteps"),
        ({"num_timesteps": 100}, r"num_timesteps=100 needs .*continuous_time=false"),
        (
            {"continuous_time": False, "num_timesteps": 9, "time_sampler": "t"},
            r"time_sampler=t draws from continuous time; .* use k",
        ),
        ({"block_size": 0}, r"block_size=0 must be from 1 to .*seq_len=.* use null"),
        ({"seq_len": 64, "block_size": 65}, r"block_size=65 must be from 1 to .*seq_len=64"),
        ({"remask_cap": 0.0}, r"remask_cap=0.0 must be in \(0, 1\]; .*sampler=ancestral"),
        ({"num_sampling_steps": 0}, r"num_sampling_steps=0 must be at least 1"),
    )
    wrong = {"t_min": 0.7}  # noqa: RUF012
    paper_sizes = (
        ({}, 162.2),
        ({"tie_embeddings": True}, 123.6),
        ({"adaln_when_unconditioned": True, "cond_dim": 128}, 169.6),
        ({"time_conditioning": True, "cond_dim": 128}, 169.6),
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("use_low_discrepancy_sampler", "is called model_cfg.stratified here"),
        ("d_mult", "is called model_cfg.mlp_ratio here"),
        ("is_causal", "is not a setting of mdl"),
        ("lm_loss_weight", "is not a setting of mdl"),
    ],
)
def test_key_of_other_code_is_refused(key, message):
    with pytest.raises(ConfigError, match=message):
        model_config("mdl", {key: 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_min": 0.01}, "t_min=0.01 has no effect with model_cfg.time_sampler=k"),
        ({"cond_dim": 8}, "cond_dim=8 has no effect with model_cfg.time_conditioning=false"),
        ({"remask_cap": 0.2}, "remask_cap=0.2 has no effect with model_cfg.sampler=first_hitting"),
        ({"num_sampling_steps": 9}, "num_sampling_steps=9 has no effect .*sampler=first_hitting"),
        (
            {"time_conditioning": True, "adaln_when_unconditioned": True},
            "adaln_when_unconditioned=True has no effect",
        ),
    ],
)
def test_setting_without_effect_is_warned_of(changes, message):
    with pytest.warns(UserWarning, match=message):
        model_config("mdl", changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_config("mdl", {})
        model_config("mdl", {"time_sampler": "t", "t_min": 0.01})
