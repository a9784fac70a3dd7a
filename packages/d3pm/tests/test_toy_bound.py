"""The bound of the enumerable source: exact predictions, the shipped estimator, all processes."""

from __future__ import annotations

import math

import pytest
import torch
import toy_cases

from nanozoo_core.contract import Draw
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing import toy

each_process = pytest.mark.parametrize("name", toy_cases.FAMILIES)


@each_process
def test_bound_falls_towards_the_entropy_and_never_below(name):
    bounds = [toy_cases.toy_bound(toy_cases.toy_process(name, t)) for t in (2, 8, 64)]
    assert bounds[0] > bounds[1] > bounds[2] > toy.ENTROPY
    assert bounds[2] < toy.ENTROPY + 0.012  # what is left falls as 1 / T
    assert bounds[1] < toy.ENTROPY + 8 * 0.012


@each_process
@pytest.mark.parametrize("num_timesteps", [2, 8, 64])
def test_estimate_is_the_enumerated_bound(name, num_timesteps):
    """`nll` of a model whose network is the table, on 20000 sequences: within 3 standard errors."""
    process = toy_cases.toy_process(name, num_timesteps)
    num_draws = 20_000
    with torch.no_grad():
        model = toy_cases.toy_model(process)
        nats = load_adapter("d3pm").nll(model, toy.batch(num_draws), Draw(0)).nats
    error = float(nats.std()) / math.sqrt(num_draws)
    assert abs(float(nats.mean()) - toy_cases.toy_bound(process)) < 3 * error
