"""Samplers: their exact law on the toy source, prompts, infilling, text beyond one window."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import toy_cases
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.config import model_config
from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation.denoising import denoised
from nanozoo_core.generation.text import draw_text
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.sources import batch_of
from nanozoo_d3pm.adapter import D3PMAdapter
from nanozoo_d3pm.config import D3PMConfig
from nanozoo_d3pm.generate import denoise, time_grid
from nanozoo_d3pm.model import D3PM
from nanozoo_d3pm.transitions import Transition

VOCAB, LENGTH = 20, 12
ADAPTER = D3PMAdapter(D3PMConfig, D3PM)
FAMILIES = {
    "absorbing": {},
    "uniform": {"transition_type": "uniform", "noise_schedule": "cosine"},
    "gaussian": {"transition_type": "gaussian", "noise_schedule": "linear"},
    "spectral": {"transition_type": "nearest_neighbor", "nearest_neighbors": 4},
    "clusters": {
        "transition_type": "nearest_neighbor",
        "nearest_neighbors": 5,
        "nn_mode": "clusters",
    },
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def model(family: str = "absorbing", **changes: object) -> D3PM:
    """A fitted model, moved away from the zeros it starts with."""
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "seq_len": LENGTH,
        "model_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "cond_dim": 8,
        "num_timesteps": 16,
        "sampling_timesteps": 8,
        "sar_chunk_size": 5,
    }
    torch.manual_seed(0)
    made = D3PM(model_config("d3pm", settings | FAMILIES[family] | changes)).eval()
    windows = torch.randint(VOCAB, (8, LENGTH + 1), generator=seeded_generator(9))
    ADAPTER.prepare_model(made, [batch_of(windows)])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


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
    place = torch.tensor([process.num_input_ids**2, process.num_input_ids, 1])

    def predict(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        table = toy_cases.toy_prediction(process, states, int(t[0])).exp()
        return table[(x * place).sum(1)].flatten(0, 1)[rows]

    nothing = torch.zeros(num_draws, 3, dtype=torch.int64)
    *_, drawn = denoise(
        process,
        predict,
        nothing,
        nothing.bool(),
        num_steps=num_steps,
        generator=seeded_generator(1),
    )
    return torch.bincount((drawn * torch.tensor([9, 3, 1])).sum(1), minlength=27).double()


def chi_square(counts: Tensor, law: Tensor) -> float:
    expected = law * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


# 26 degrees of freedom at the 1e-4 level, by Wilson and Hilferty's cube root.
CHI_SQUARE_LIMIT = 26 * (1 - 2 / 234 + 3.72 * math.sqrt(2 / 234)) ** 3


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
    assert chi_square(drawn_counts(process, 8, 20_000), law) < CHI_SQUARE_LIMIT


@each_process
def test_drawn_sequences_follow_the_source_as_steps_grow(name):
    few, many = toy_cases.toy_process(name, 4), toy_cases.toy_process(name, 128)
    assert chi_square(drawn_counts(few, 4, 20_000), toy.joint()) > 2 * CHI_SQUARE_LIMIT
    assert chi_square(drawn_counts(many, 128, 20_000), toy.joint()) < CHI_SQUARE_LIMIT


# -- whole models --------------------------------------------------------------------------------


def infill(net: D3PM, window: PartialText, settings: SamplingSettings, seed: int) -> list[int]:
    return denoised(ADAPTER, net, [], window, [], settings, seeded_generator(seed))


def after(first: int) -> PartialText:
    return [first, *[None] * LENGTH]


@each_family
def test_known_tokens_stay_and_no_mask_is_left(family):
    net = model(family)
    window: list[int | None] = list(range(1, LENGTH + 2))
    for place in (1, 2, 4, 7, 8, 9, 11):
        window[place] = None
    results = set()
    for seed in range(20):
        steps: list[PartialText] = []
        filled = infill(net, window, SamplingSettings(on_step=steps.append), seed)
        assert all(0 <= token < VOCAB for token in filled)
        for state in [*steps, filled]:
            assert len(state) == LENGTH + 1
            assert all(known in (None, got) for known, got in zip(window, state, strict=True))
        assert steps[-1] == filled
        results.add(tuple(filled))
    assert len(results) > 10


def test_more_steps_than_the_process_has_are_refused():
    with pytest.raises(ConfigError, match=r"num_steps=17 is more than model_cfg.num_timesteps=16"):
        infill(model(), after(1), SamplingSettings(num_steps=17), 0)


@each_family
@pytest.mark.parametrize("max_tokens", [1, 7, 12, 40])
def test_text_goes_on_to_any_length(family, max_tokens):
    settings = SamplingSettings(max_tokens=max_tokens)
    blocks = list(draw_text(ADAPTER, model(family), [3, 4], settings, seeded_generator(1)))
    text = [token for block in blocks for token in block]
    assert len(text) == max_tokens
    assert all(0 <= token < VOCAB for token in text)
    assert [len(block) for block in blocks][:1] == [min(max_tokens, LENGTH - 1)]
    assert all(len(block) <= 5 for block in blocks[1:])


def test_text_is_a_function_of_the_seed():

    def text(seed: int) -> list[list[int]]:
        settings = SamplingSettings(max_tokens=20)
        return list(draw_text(ADAPTER, model(), [1], settings, seeded_generator(seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="separator"):
        list(draw_text(ADAPTER, model(), [], SamplingSettings(), seeded_generator(0)))


def test_network_runs_only_in_steps_that_lift_a_mask():
    net = model(num_timesteps=400, sampling_timesteps=400)
    calls = []
    features = net.net.features

    def counted(tokens: Tensor, time: Tensor | None = None) -> Tensor:
        calls.append(1)
        return features(tokens, time)

    net.net.features = counted  # type: ignore[method-assign]
    filled = infill(net, after(1), SamplingSettings(), 3)
    assert 1 < len(calls) <= LENGTH
    calls.clear()
    assert infill(net, after(1), SamplingSettings(use_cache=False), 3) == filled
    assert len(calls) == 400


def test_greedy_drawing_takes_the_likeliest_tokens():
    """With one step every masked token is drawn at once, so greedy is the argmax of the logits."""
    net = model()
    filled = infill(net, after(1), SamplingSettings(temperature=0, num_steps=1), 4)
    window = torch.tensor([[1] + [VOCAB] * LENGTH])
    with torch.no_grad():
        expected = net(window, torch.tensor([16]))[0, 1:].argmax(-1)
    assert filled[1:] == expected.tolist()


@each_family
def test_greedy_and_cut_sampling_run_with_zero_probabilities(family):
    for settings in (SamplingSettings(temperature=0), SamplingSettings(top_k=1, top_p=0.5)):
        filled = infill(model(family), after(1), settings, 5)
        assert all(0 <= token < VOCAB for token in filled)


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(100, 50), (7, 3), (5, 9), (1, 1)])
def test_time_grid_falls_strictly_from_the_end_to_zero(num_timesteps, num_steps):
    grid = time_grid(num_timesteps, num_steps)
    assert grid[0] == num_timesteps
    assert grid[-1] == 0
    assert all(a > b for a, b in pairwise(grid))
