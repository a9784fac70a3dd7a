"""Every refusal names its key, its value and what would be right."""

from __future__ import annotations

import pytest

from nanozoo_core.config import model_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.diffusion.laws import ConfigLaws
from nanozoo_d3pm.model import D3PM

GAUSSIAN = {"transition_type": "gaussian", "noise_schedule": "linear"}
BAND = {"transition_type": "band", "noise_schedule": "linear", "vocab_size": 258}
NEIGHBORS = {"transition_type": "nearest_neighbor"}


def made(**changes):
    """The config that ships, changed."""
    return model_config("d3pm", changes)


class TestConfig(ConfigLaws):
    model = "d3pm"
    refusals = (
        ({"auxiliary_loss_weight": -1.0}, r"auxiliary_loss_weight=-1.0 must not be negative"),
        ({"num_timesteps": 0}, r"num_timesteps=0 must be at least 1"),
        ({"sampling_timesteps": 101}, r"sampling_timesteps=101 must be between 1 and .*=100"),
        (
            {"transition_type": "uniform", "time_conditioning": False},
            r"time_conditioning=false needs model_cfg.transition_type=absorbing",
        ),
        ({"terminal_mask": True}, r"terminal_mask=true has no effect with .*=absorbing; leave"),
        ({"terminal_mask": False}, r"terminal_mask=false has no effect with .*=absorbing; leave"),
        ({"gaussian_beta_min": 2e-4}, r"gaussian_beta_min=0.0002 has no effect with .*=absorbing"),
        ({"gaussian_beta_max": 0.03}, r"gaussian_beta_max=0.03 has no effect with .*=absorbing"),
        ({"nearest_neighbors": 63}, r"nearest_neighbors=63 has no effect with .*=absorbing"),
        ({"nn_mode": "exact"}, r"nn_mode=exact has no effect with .*=absorbing"),
        ({"nn_embeddings": "x.npy"}, r"nn_embeddings=x.npy has no effect with .*=absorbing"),
        (GAUSSIAN | {"nn_uniform_rate": 0.1}, r"nn_uniform_rate=0.1 has no effect with .*=gauss"),
        ({"cond_dim": 8}, r"cond_dim=8 has no effect with model_cfg.time_conditioning=false"),
        (
            {"auxiliary_loss_weight": 0.0, "auxiliary_loss_scale": "total"},
            r"auxiliary_loss_scale=total has no effect with model_cfg.auxiliary_loss_weight=0",
        ),
        (GAUSSIAN | {"vocab_size": 4096}, r"at most 1024 of them, not model_cfg.vocab_size=4096"),
        (GAUSSIAN | {"vocab_size": 1024, "num_timesteps": 1000}, r"take 3.9 GiB; .*at most 256"),
        (GAUSSIAN | {"noise_schedule": "cosine"}, r"noise_schedule=cosine is not defined .*linear"),
        (GAUSSIAN | {"gaussian_beta_min": 0.5}, r"gaussian_beta_min=0.5 and .*=0.02 must be in"),
        (
            BAND | {"noise_schedule": "mutual_info"},
            r"mutual_info is not defined .*linear or cosine",
        ),
        (BAND | {"band_width": 300}, r"band_width=300 must be between 1 and 257"),
        (BAND | {"vocab_size": 4096}, r"transition_type=band needs ids in a meaningful order"),
        ({"band_width": 4}, r"band_width=4 has no effect with .*=absorbing; leave it out"),
        (NEIGHBORS | {"nn_mode": "exact", "vocab_size": 50257}, r"nn_mode=exact handles at most"),
        (NEIGHBORS | {"nearest_neighbors": 9, "vocab_size": 9}, r"nearest_neighbors=9 must be at"),
        (NEIGHBORS | {"nn_uniform_rate": -0.1}, r"nn_uniform_rate=-0.1 must not be negative"),
    )
    wrong = {"auxiliary_loss_weight": -1}  # noqa: RUF012
    paper_sizes = (({"cond_dim": 128, "time_conditioning": True}, 169.6),)


def test_prior_that_is_left_over_names_its_size_when_the_model_is_built():
    settings = GAUSSIAN | {"terminal_mask": False, "gaussian_beta_max": 0.0002}
    config = made(vocab_size=64, seq_len=8, **settings)
    with pytest.raises(ConfigError, match=r"keeps \d\.\d+ nats per token"):
        D3PM(config)


def test_automatic_choices():
    assert made(**NEIGHBORS).has_terminal_mask
    assert not made().has_terminal_mask
    assert not made(vocab_size=4096, **NEIGHBORS).uses_clusters
    assert made(vocab_size=4097, **NEIGHBORS).uses_clusters
