"""Every refusal names its key, its value and what would be right."""

from __future__ import annotations

import warnings

import pytest
import torch

from nanozoo_core.config import TrainingConfig, from_defaults, model_config
from nanozoo_core.errors import ConfigError
from nanozoo_mdl.model import MDLM


def made(**changes):
    """The config that ships, changed."""
    return model_config("mdl", changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_dim": 128, "num_heads": 5}, r"num_heads=5 does not divide .*model_dim=128"),
        ({"model_dim": 12, "num_heads": 4}, r"num_heads=4 makes heads of odd width 3"),
        ({"num_layers": 0}, r"num_layers=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"t_min": 0.5}, r"t_min=0.5 must be in \[0, 0.5\)"),
        ({"continuous_time": False}, r"continuous_time=false needs .*num_timesteps"),
        ({"num_timesteps": 100}, r"num_timesteps=100 needs .*continuous_time=false"),
        (
            {"continuous_time": False, "num_timesteps": 9, "time_sampler": "t"},
            r"time_sampler=t draws from continuous time; .* use k",
        ),
        ({"num_sampling_steps": 0}, r"num_sampling_steps=0 must be at least 1"),
        ({"seq_len": 64, "sar_chunk_size": 64}, r"sar_chunk_size=64 must be .*seq_len=64"),
    ],
)
def test_wrong_setting_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**changes)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        made(num_layers=0, dropout=2.0, t_min=0.7)
    assert len(caught.value.problems) == 3


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
        ({"num_sampling_steps": 9}, "num_sampling_steps=9 has no effect .*sampler=first_hitting"),
        (
            {"time_conditioning": True, "adaln_when_unconditioned": True},
            "adaln_when_unconditioned=True has no effect",
        ),
    ],
)
def test_setting_without_effect_is_warned_of(changes, message):
    with pytest.warns(UserWarning, match=message):
        made(**changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made()
        made(time_sampler="t", t_min=0.01)


def test_window_longer_than_the_model_is_refused():
    training = from_defaults(TrainingConfig, model="mdl", model_cfg={}, data={"seq_len": 512})
    (problem,) = made(seq_len=256).check_training(training)
    assert "data.seq_len=512" in problem
    assert made(seq_len=512).check_training(training) == []


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({}, 162.2),
        ({"tie_embeddings": True}, 123.6),
        ({"adaln_when_unconditioned": True, "cond_dim": 128}, 169.6),
        ({"time_conditioning": True, "cond_dim": 128}, 169.6),
    ],
)
def test_size_at_paper_scale(changes, millions):
    scale = {"model_dim": 768, "num_layers": 12, "num_heads": 12}
    config = made(vocab_size=50257, seq_len=1024, **scale, **changes)
    with torch.device("meta"):
        model = MDLM(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
