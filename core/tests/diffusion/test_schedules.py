"""Continuous schedules: their ends, weights and inverses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from nanozoo_core.diffusion.schedules import Cosine, CosineSquared, Geometric, Linear

SCHEDULES = [Linear(), Linear(eps=1e-3), Cosine(), CosineSquared(), Geometric()]
TIMES = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@each_schedule
def test_keep_and_noise_are_complements_and_sigma_their_logarithm(schedule):
    assert_close(schedule.keep(TIMES) + schedule.noise(TIMES), torch.ones_like(TIMES))
    assert_close(schedule.sigma(TIMES), -schedule.keep(TIMES).log(), rtol=1e-9, atol=0)


@each_schedule
def test_weight_is_minus_the_slope_of_keep_over_noise(schedule):
    t = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.keep(t).sum(), t)
    assert_close(schedule.weight(TIMES), -slope / schedule.noise(TIMES), rtol=1e-8, atol=0)


@each_schedule
def test_sigma_rate_is_the_slope_of_sigma(schedule):
    t = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    assert_close(schedule.sigma_rate(TIMES), slope, rtol=1e-8, atol=0)


@each_schedule
def test_time_of_noise_inverts_noise(schedule):
    # sigma of the geometric schedule is so large at late times that noise is 1 to the last bit.
    times = TIMES[:60] if isinstance(schedule, Geometric) else TIMES
    assert_close(schedule.time_of_noise(schedule.noise(times)), times, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), CosineSquared()], ids=repr)
def test_masking_schedules_run_from_one_to_zero_with_a_finite_weight_at_the_end(schedule):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(schedule.keep(ends), 1 - ends, rtol=0, atol=1e-15)
    last = schedule.weight(torch.tensor(1.0))
    expected = {Linear: 1.0, Cosine: math.pi / 2, CosineSquared: 0.0}[type(schedule)]
    assert float(last) == pytest.approx(expected, abs=1e-6)


def test_float32_is_accurate_at_small_times():
    t = torch.tensor([1e-6, 1e-4])
    for schedule in (Linear(), Cosine(), CosineSquared()):
        assert_close(schedule.weight(t), schedule.weight(t.double()).float(), rtol=1e-5, atol=0)
        assert_close(schedule.noise(t), schedule.noise(t.double()).float(), rtol=1e-5, atol=0)
