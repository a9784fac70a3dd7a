"""Samplers: their exact law on the toy source, prompts, infilling, text beyond one window."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.contract import SamplingSettings, seeded_generator
from nanozoo_core.testing import toy
from nanozoo_d3pm.adapter import D3PMAdapter
from nanozoo_d3pm.config import D3PMConfig
from nanozoo_d3pm.generate import denoise, infill, time_grid
from nanozoo_d3pm.model import D3PM
from nanozoo_d3pm.transitions import Absorbing, Transition, Uniform

VOCAB, LENGTH = 20, 12


def model(transition_type: str = "absorbing", **changes: object) -> D3PM:
    schedule = "mutual_info" if transition_type == "absorbing" else "cosine"
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "seq_len": LENGTH,
        "model_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "cond_dim": 8,
        "transition_type": transition_type,
        "noise_schedule": schedule,
        "num_timesteps": 16,
        "sampling_timesteps": 8,
        "sar_chunk_size": 5,
    }
    torch.manual_seed(0)
    made = D3PM(D3PMConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


# -- the toy source: the law of the sampler, computed and not sampled ----------------------------


def toy_prediction(transition: Transition, states: Tensor, t: int) -> Tensor:
    """log p(x_0 at i | the other tokens of x_t) for every row of `states` (N, 3): (N, 3, V)."""
    if isinstance(transition, Absorbing):
        return toy.masked_denoiser(states)
    x = toy.sequences()
    times = torch.tensor([t])
    matrix = transition.row(torch.arange(3)[None], times, torch.float64)[0]
    per_token = matrix[x[None], states[:, None]]  # (N, 27, 3): q(x_t | x_0) token by token
    symbol = nn.functional.one_hot(x, 3).double()
    pairs = ((1, 2), (0, 2), (0, 1))
    others = torch.stack([per_token[:, :, pair].prod(-1) for pair in pairs])
    mass = torch.einsum("k,ink,kiv->niv", toy.joint(), others, symbol)
    return (mass / mass.sum(-1, keepdim=True)).log()


def sampler_law(transition: Transition, num_steps: int) -> Tensor:
    """The distribution of the sampled sequences (27,): every step's matrix over all states."""
    num_symbols = transition.num_input_ids
    states = torch.cartesian_prod(*[torch.arange(num_symbols)] * 3)  # (N, 3)
    if isinstance(transition, Absorbing):
        law = (states == toy.MASK_ID).all(1).double()
    else:
        law = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    grid = time_grid(transition.num_timesteps, num_steps)
    for t, s in pairwise(grid):
        log_probs = toy_prediction(transition, states, t)
        times = torch.full((len(states),), s), torch.full((len(states),), t)
        reverse = transition.log_reverse(log_probs, states, *times).exp()  # (N, 3, K)
        joint = torch.ones(len(states), len(states), dtype=torch.float64)
        for i in range(3):
            joint = joint * reverse[:, i][:, states[:, i]]
        assert_close(joint.sum(1), torch.ones(len(states)).double(), rtol=0, atol=1e-10)
        law = law @ joint
    clean = (states < 3).all(1)
    assert float(law[~clean].sum()) < 1e-12
    return law[clean]


@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_sampler_on_exact_predictions_draws_from_the_source(family):
    num_timesteps = 256
    transition: Transition
    if family == "absorbing":
        transition = Absorbing(3, num_timesteps, "linear")
    else:
        transition = Uniform(3, num_timesteps, "linear")
    law = sampler_law(transition, num_timesteps)
    assert 0.5 * float((law - toy.joint()).abs().sum()) < 0.01


@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_skipping_steps_still_gives_a_distribution_and_costs_little(family):
    transition = Absorbing(3, 256, "linear") if family == "absorbing" else Uniform(3, 256, "linear")
    law = sampler_law(transition, 16)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-10)
    distance = 0.5 * float((law - toy.joint()).abs().sum())
    assert distance < 0.1
    assert distance > 0.5 * float((sampler_law(transition, 256) - toy.joint()).abs().sum())


@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_drawn_sequences_follow_the_computed_law(family):
    """Chi-square of 20000 sequences at the 1e-4 level; 26 degrees of freedom."""
    transition = Absorbing(3, 8, "linear") if family == "absorbing" else Uniform(3, 8, "linear")

    def predict(x: Tensor, t: int, rows: Tensor) -> Tensor:
        return toy_prediction(transition, x, t).exp().flatten(0, 1)[rows]

    num_draws = 20_000
    nothing = torch.zeros(num_draws, 3, dtype=torch.int64)
    drawn = denoise(
        transition,
        predict,
        nothing,
        nothing.bool(),
        num_steps=8,
        generator=seeded_generator(1),
    )
    codes = (drawn * torch.tensor([9, 3, 1])).sum(1)
    counts = torch.bincount(codes, minlength=27).double()
    expected = sampler_law(transition, 8) * num_draws
    limit = 26 * (1 - 2 / 234 + 3.72 * math.sqrt(2 / 234)) ** 3  # Wilson-Hilferty
    assert float(((counts - expected) ** 2 / expected).sum()) < limit


# -- whole models --------------------------------------------------------------------------------


@pytest.mark.parametrize("transition_type", ["absorbing", "uniform"])
def test_known_tokens_stay_and_no_mask_is_left(transition_type):
    net = model(transition_type)
    tokens = torch.randint(VOCAB, (LENGTH + 1,), generator=seeded_generator(2)).tolist()
    holes = [False, True, True, False, True, False, False, True, True, True, False, True, False]
    results = set()
    for seed in range(20):
        filled = infill(net, tokens, holes, SamplingSettings(), seeded_generator(seed))
        assert len(filled) == LENGTH + 1
        assert all(0 <= token < VOCAB for token in filled)
        assert all(hole or a == b for a, b, hole in zip(tokens, filled, holes, strict=True))
        results.add(tuple(filled))
    assert len(results) > 10


def test_infilling_without_holes_changes_nothing():
    tokens = list(range(10))
    same = infill(model(), tokens, [False] * 10, SamplingSettings(), seeded_generator(0))
    assert same == tokens


@pytest.mark.parametrize(
    ("tokens", "holes", "message"),
    [
        ([1, 2], [False], "2 tokens need as many marks"),
        ([1, 2], [True, False], "first token"),
        ([1] * 14, [False] * 14, "window of 13"),
    ],
)
def test_impossible_infilling_is_refused(tokens, holes, message):
    with pytest.raises(ValueError, match=message):
        infill(model(), tokens, holes, SamplingSettings(), seeded_generator(0))


@pytest.mark.parametrize("transition_type", ["absorbing", "uniform"])
@pytest.mark.parametrize("max_tokens", [1, 7, 12, 40])
def test_text_goes_on_to_any_length(transition_type, max_tokens):
    adapter = D3PMAdapter(D3PMConfig, D3PM)
    settings = SamplingSettings(max_tokens=max_tokens)
    blocks = list(adapter.generate(model(transition_type), [3, 4], settings, seeded_generator(1)))
    text = [token for block in blocks for token in block]
    assert len(text) == max_tokens
    assert all(0 <= token < VOCAB for token in text)
    assert [len(block) for block in blocks][:1] == [min(max_tokens, LENGTH - 1)]
    assert all(len(block) <= 5 for block in blocks[1:])


def test_text_is_a_function_of_the_seed():
    adapter = D3PMAdapter(D3PMConfig, D3PM)

    def text(seed: int) -> list[list[int]]:
        settings = SamplingSettings(max_tokens=20)
        return list(adapter.generate(model(), [1], settings, seeded_generator(seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_empty_prompt_is_refused():
    adapter = D3PMAdapter(D3PMConfig, D3PM)
    with pytest.raises(ValueError, match="separator"):
        list(adapter.generate(model(), [], SamplingSettings(), seeded_generator(0)))


def test_network_runs_only_in_steps_that_lift_a_mask():
    net = model(num_timesteps=400, sampling_timesteps=400)
    calls = []
    features = net.net.features

    def counted(tokens: Tensor, time: Tensor | None = None) -> Tensor:
        calls.append(1)
        return features(tokens, time)

    net.net.features = counted  # type: ignore[method-assign]
    tokens = [1] + [0] * LENGTH
    infill(net, tokens, [False] + [True] * LENGTH, SamplingSettings(), seeded_generator(3))
    assert 1 < len(calls) <= LENGTH


def test_greedy_drawing_takes_the_likeliest_tokens():
    """With one step every masked token is drawn at once, so greedy is the argmax of the logits."""
    net = model()
    tokens = [1] + [0] * LENGTH
    settings = SamplingSettings(temperature=0, num_steps=1)
    filled = infill(net, tokens, [False] + [True] * LENGTH, settings, seeded_generator(4))
    window = torch.tensor([[1] + [VOCAB] * LENGTH])
    with torch.no_grad():
        expected = net(window, torch.tensor([16]))[0, 1:].argmax(-1)
    assert filled[1:] == expected.tolist()


@pytest.mark.parametrize("transition_type", ["absorbing", "uniform"])
def test_greedy_and_cut_sampling_run_with_zero_probabilities(transition_type):
    for settings in (SamplingSettings(temperature=0), SamplingSettings(top_k=1, top_p=0.5)):
        tokens = [1] + [0] * LENGTH
        filled = infill(
            model(transition_type), tokens, [False] + [True] * LENGTH, settings, seeded_generator(5)
        )
        assert all(0 <= token < VOCAB for token in filled)


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(100, 50), (7, 3), (5, 9), (1, 1)])
def test_time_grid_falls_strictly_from_the_end_to_zero(num_timesteps, num_steps):
    grid = time_grid(num_timesteps, num_steps)
    assert grid[0] == num_timesteps
    assert grid[-1] == 0
    assert all(a > b for a, b in pairwise(grid))
