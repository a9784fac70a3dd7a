"""Samplers: their exact law on the toy source, prompts, infilling, text beyond one window."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import toy_cases
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.laws import SamplerLaws
from nanozoo_core.testing.diffusion.models import sampler_models, watch
from nanozoo_core.testing.statistics import chi_square, chi_square_limit
from nanozoo_d3pm.generate import denoise, time_grid
from nanozoo_d3pm.transitions import Transition

FAMILIES = {
    "absorbing": {},
    "uniform": {"cond_dim": 8, "transition_type": "uniform", "noise_schedule": "cosine"},
    "gaussian": {"cond_dim": 8, "transition_type": "gaussian", "noise_schedule": "linear"},
    "spectral": {"cond_dim": 8, "transition_type": "nearest_neighbor", "nearest_neighbors": 4},
    "clusters": {
        "cond_dim": 8,
        "transition_type": "nearest_neighbor",
        "nearest_neighbors": 5,
        "nn_mode": "clusters",
    },
}


# -- the toy source: the law of the sampler, computed and drawn ----------------------------------

each_process = pytest.mark.parametrize("name", toy_cases.FAMILIES)


def all_states(process: Transition) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(process.num_input_ids)] * 3)  # (N, 3)


def sampler_law(process: Transition, num_steps: int) -> Tensor:
    """The distribution of the sampled sequences (27,): every step's matrix over all states."""
    states = all_states(process)
    if process.mask_id is not None:
        law = (states == process.mask_id).all(1).double()
    else:
        law = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    for t, s in pairwise(time_grid(process.num_timesteps, num_steps)):
        log_probs = toy_cases.toy_prediction(process, states, t)
        times = torch.full((len(states),), s), torch.full((len(states),), t)
        reverse = process.log_reverse(log_probs, states, *times).exp()  # (N, 3, K)
        reverse = nn.functional.pad(reverse, (0, process.terminal_mask))
        joint = torch.ones(len(states), len(states), dtype=torch.float64)
        for i in range(3):
            joint = joint * reverse[:, i][:, states[:, i]]
        assert_close(joint.sum(1), torch.ones(len(states)).double(), rtol=0, atol=1e-10)
        law = law @ joint
    clean = (states < 3).all(1)
    assert float(law[~clean].sum()) < 1e-12
    return law[clean]


def distance(law: Tensor) -> float:
    """In total variation, from the source."""
    return 0.5 * float((law - toy.joint()).abs().sum())


def drawn_counts(process: Transition, num_steps: int, num_draws: int) -> Tensor:
    """How often each of the 27 sequences is drawn with exact predictions."""
    states = all_states(process)

    def predict(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        table = toy_cases.toy_prediction(process, states, int(t[0])).exp()
        return table[toy.code(x, process.num_input_ids)].flatten(0, 1)[rows]

    nothing = torch.zeros(num_draws, 3, dtype=torch.int64)
    holes = Holes(nothing, nothing.bool(), SamplingSettings(), seeded_generator(1))
    *_, drawn = denoise(process, predict, holes, num_steps=num_steps)
    return toy.counts(drawn)


@each_process
def test_more_steps_bring_the_sampler_to_the_source(name):
    process = toy_cases.toy_process(name, 256)
    assert distance(sampler_law(process, 256)) < 0.01


@each_process
def test_skipping_steps_still_gives_a_distribution_and_costs_little(name):
    process = toy_cases.toy_process(name, 256)
    law = sampler_law(process, 16)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-10)
    assert distance(sampler_law(process, 64)) < distance(law) < 0.1


@each_process
def test_drawn_sequences_follow_the_computed_law(name):
    process = toy_cases.toy_process(name, 8)
    law = sampler_law(process, 8)
    assert chi_square(drawn_counts(process, 8, 20_000), law) < chi_square_limit(26)


@each_process
def test_drawn_sequences_follow_the_source_as_steps_grow(name):
    few, many = toy_cases.toy_process(name, 4), toy_cases.toy_process(name, 128)
    assert chi_square(drawn_counts(few, 4, 20_000), toy.joint()) > 2 * chi_square_limit(26)
    assert chi_square(drawn_counts(many, 128, 20_000), toy.joint()) < chi_square_limit(26)


def test_masks_fall_by_the_schedule_of_the_process():
    """After the steps that end at t = 6, 4, 2 and 0 of 8, t / 8 of the masks are left."""
    process = toy_cases.toy_process("absorbing", 8)

    def predict(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return torch.ones(len(rows), 3, dtype=torch.float64)

    x = torch.zeros(20_000, 3, dtype=torch.int64)
    holes = Holes(x, x.bool(), SamplingSettings(), seeded_generator(2))
    left = [
        float((state == process.mask_id).double().mean())
        for state in denoise(process, predict, holes, num_steps=4)
    ]
    assert left == pytest.approx([0.75, 0.5, 0.25, 0.0], abs=4 * 0.5 / math.sqrt(60_000))


# -- whole models --------------------------------------------------------------------------------


class TestSamplers(SamplerLaws):
    models = sampler_models("d3pm", FAMILIES, {"num_timesteps": 16, "sampling_timesteps": 8})

    def test_more_steps_than_the_process_has_are_refused(self):
        message = r"num_steps=17 is more than model_cfg.num_timesteps=16"
        with pytest.raises(ConfigError, match=message):
            self.infill(self.models.make(), self.after(1), 0, num_steps=17)

    def test_network_runs_only_in_steps_that_lift_a_mask(self):
        model = self.models.make(num_timesteps=400, sampling_timesteps=400).eval()
        calls = watch(model)
        filled = self.infill(model, self.after(1), 3)
        assert 1 < len(calls) <= self.models.seq_len
        calls.clear()
        assert self.infill(model, self.after(1), 3, use_cache=False) == filled
        assert len(calls) == 400

    def test_greedy_drawing_takes_the_likeliest_tokens(self):
        """With one step all masked tokens are drawn at once: greedy is the argmax of the logits."""
        model = self.models.make().eval()
        filled = self.infill(model, self.after(1), 4, temperature=0, num_steps=1)
        window = torch.tensor([[1] + [self.models.vocab_size] * self.models.seq_len])
        with torch.no_grad():
            expected = model(window, torch.tensor([16]))[0, 1:].argmax(-1)
        assert filled[1:] == expected.tolist()


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(100, 50), (7, 3), (5, 9), (1, 1)])
def test_time_grid_falls_strictly_from_the_end_to_zero(num_timesteps, num_steps):
    grid = time_grid(num_timesteps, num_steps)
    assert grid[0] == num_timesteps
    assert grid[-1] == 0
    assert all(a > b for a, b in pairwise(grid))
