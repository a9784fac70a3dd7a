"""Every refusal names its key, its value and what would be right."""

from __future__ import annotations

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
        ({"t_min": 0.01}, r"t_min=0.01 has no effect with model_cfg.time_sampler=k; leave it out"),
        ({"cond_dim": 8}, r"cond_dim=8 has no effect with model_cfg.time_conditioning=false"),
        ({"num_sampling_steps": 9}, r"num_sampling_steps=9 has no effect .*sampler=first_hitting"),
        (
            {"time_conditioning": True, "adaln_when_unconditioned": True},
            r"adaln_when_unconditioned=true has no effect with model_cfg.time_conditioning=true",
        ),
        (
            {"alpha_type": "cosine"},
            r"alpha_type=cosine has no effect with model_cfg.time_sampler=k and .*first_hitting",
        ),
        (
            {"sampler": "ancestral", "num_sampling_steps": 0},
            r"num_sampling_steps=0 must be at least 1",
        ),
        ({"block_size": 0}, r"block_size=0 must be from 1 to .*seq_len=.* use null"),
        ({"seq_len": 64, "block_size": 65}, r"block_size=65 must be from 1 to .*seq_len=64"),
        (
            {"sampler": "remask", "num_sampling_steps": 8, "remask_cap": 0.0},
            r"remask_cap=0.0 must be in \(0, 1\]; .*sampler=ancestral",
        ),
        ({"remask_cap": 0.2}, r"remask_cap=0.2 has no effect .*sampler=first_hitting"),
    )
    wrong = {"num_timesteps": 9}  # noqa: RUF012
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
