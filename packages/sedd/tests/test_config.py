"""Every refusal names its key, its value and what would be right."""

from __future__ import annotations

import math

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.diffusion.schedules import Geometric, Linear
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.diffusion.laws import ConfigLaws
from nanozoo_sedd.model import SEDD, make_schedule

UNIFORM = {"transition_type": "uniform"}
LOGLINEAR = UNIFORM | {"noise_schedule": "loglinear"}


def made(**changes):
    """The config that ships, changed."""
    return model_config("sedd", changes)


class TestConfig(ConfigLaws):
    model = "sedd"
    refusals = (
        ({"noise_eps": 0.1}, r"noise_eps=0.1 must be in \[0, 0.1\)"),
        ({"sigma_min": 30.0}, r"sigma_min=30.0 and .*sigma_max=20.0 must"),
        ({"t_min": 0.5, "time_sampler": "t"}, r"t_min=0.5 must be in \[0, 0.5\)"),
        ({"score_scaling": False}, r"score_scaling=false would leave .*use auto"),
        ({"score_param": "denoiser"}, r"score_param=denoiser is only for .*uniform"),
        (UNIFORM | {"noise_schedule": "mutual_info"}, r"noise_schedule=mutual_info does not go"),
        (UNIFORM | {"score_scaling": True}, r"score_scaling=true does not go with .*=uniform"),
        (UNIFORM | {"time_sampler": "k"}, r"time_sampler=k does not go .*counts masked tokens"),
        (UNIFORM | {"time_conditioning": False}, r"time_conditioning=false does not go"),
        (UNIFORM | {"predictor": "first_hitting"}, r"predictor=first_hitting does not go"),
        (LOGLINEAR | {"noise_eps": 0.0}, r"noise_eps=0.0 does not go .*bound infinite"),
        (
            {"predictor": "first_hitting", "time_conditioning": True},
            r"first_hitting needs .*time_conditioning=false",
        ),
        ({"sampling_steps": 0}, r"sampling_steps=0 must be at least 1"),
        ({"sigma_max": 10.0}, r"sigma_max=10.0 has no effect with .*loglinear; leave it out"),
        (UNIFORM | {"noise_eps": 0.01}, r"noise_eps=0.01 has no effect with .*=geometric"),
        ({"t_min": 0.01}, r"t_min=0.01 has no effect with .*time_sampler=k"),
        ({"noise_eps": 0.05}, r"noise_eps=0.05 has no effect with .*=k and .*_conditioning=false"),
        ({"cond_dim": 8}, r"cond_dim=8 has no effect with .*time_conditioning=false"),
        (
            {"predictor": "first_hitting", "noise_schedule": "geometric"},
            r"noise_schedule=geometric has no effect with .*=k and .*first_hitting",
        ),
        (
            {"predictor": "first_hitting", "sampling_steps": 9},
            r"sampling_steps=9 has no effect with .*first_hitting",
        ),
    )
    wrong = {"sampling_steps": 0}  # noqa: RUF012
    paper_sizes = (({"cond_dim": 128, "time_conditioning": True}, 169.6),)


def test_paper_names_are_refused_with_ours():
    with pytest.raises(ConfigError, match=r"num_timesteps is called model_cfg.sampling_steps here"):
        model_config("sedd", {"num_timesteps": 128})


def test_auto_tells_the_noise_only_where_tokens_hide_it():
    assert not made(time_conditioning="auto").knows_time
    assert made(time_conditioning="auto", **UNIFORM).knows_time
    assert made(time_conditioning=True).knows_time


def test_automatic_choices_are_those_of_the_paper_but_for_counted_masks():
    masks, uniform = made(), made(**UNIFORM)
    assert make_schedule(masks) == Linear(1e-3)
    assert make_schedule(uniform) == Geometric(1e-4, 20.0)
    assert masks.draws_counts
    assert not uniform.draws_counts
    assert not made(time_sampler="t").draws_counts
    assert make_schedule(made(noise_schedule="mutual_info")) == Linear(1e-3)


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({}, -math.log(1e-3)),
        ({"noise_eps": 0.0}, -math.log(1e-3)),
        ({"noise_eps": 0.05}, -math.log(0.05)),
        (UNIFORM, 20.0),
    ],
)
def test_network_is_told_no_more_noise_than_training_shows(changes, largest):
    config = made(
        vocab_size=9,
        seq_len=4,
        model_dim=8,
        num_layers=1,
        num_heads=2,
        cond_dim=4,
        time_conditioning=True,
        **changes,
    )
    model = SEDD(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    tokens = torch.randint(9, (1, 5))
    last = model(tokens, torch.tensor([largest]))
    assert torch.equal(model(tokens, torch.tensor([float("inf")])), last)
    assert torch.equal(model(tokens, torch.tensor([100.0])), last)
    assert not torch.equal(model(tokens, torch.tensor([0.9 * largest])), last)
