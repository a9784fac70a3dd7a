"""Infilling, text of any length and the samplers of whole models; their laws are core's tests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation.denoising import denoised
from nanozoo_core.generation.text import draw_text
from nanozoo_core.randomness import seeded_generator
from nanozoo_mdl.adapter import MDLMAdapter
from nanozoo_mdl.config import MDLMConfig
from nanozoo_mdl.model import MDLM

VOCAB, LENGTH = 20, 12
ADAPTER = MDLMAdapter(MDLMConfig, MDLM)
SAMPLERS = ("ancestral", "ancestral_cache", "first_hitting", "confidence")
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def make_model(sampler: str = "first_hitting", **changes: object) -> MDLM:
    """Moved away from the zeros it starts with."""
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "seq_len": LENGTH,
        "model_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "sampler": sampler,
        "sar_chunk_size": 5,
    }
    torch.manual_seed(0)
    model = MDLM(model_config("mdl", settings | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def infill(model: MDLM, window: PartialText, settings: SamplingSettings, seed: int) -> list[int]:
    return denoised(ADAPTER, model, [], window, [], settings, seeded_generator(seed))


def after(first: int) -> PartialText:
    return [first, *[None] * LENGTH]


def calls_of(model: MDLM) -> list[int]:
    """Grows by the number of windows each time the network runs."""
    calls: list[int] = []
    features = model.net.features

    def counted(tokens: Tensor, time: Tensor | None = None) -> Tensor:
        calls.append(len(tokens))
        return features(tokens, time)

    model.net.features = counted  # type: ignore[method-assign]
    return calls


@each_sampler
@pytest.mark.parametrize("timed", [False, True])
def test_any_pattern_of_known_tokens_stays_and_no_mask_is_left(sampler, timed):
    changes = {"time_conditioning": True, "cond_dim": 8} if timed else {}
    model = make_model(sampler, **changes)
    window: list[int | None] = list(range(1, LENGTH + 2))
    for place in (1, 2, 4, 7, 8, 9, 11):
        window[place] = None
    results = set()
    for seed in range(25):
        steps: list[PartialText] = []
        filled = infill(model, window, SamplingSettings(on_step=steps.append), seed)
        assert all(0 <= token < VOCAB for token in filled)
        for state in [*steps, filled]:
            assert all(known in (None, got) for known, got in zip(window, state, strict=True))
        assert steps[0] == window
        assert steps[-1] == filled
        results.add(tuple(filled))
    assert len(results) > 10


@each_sampler
@pytest.mark.parametrize("max_tokens", [1, 7, 12, 40])
def test_text_goes_on_to_any_length(sampler, max_tokens):
    settings = SamplingSettings(max_tokens=max_tokens)
    blocks = list(draw_text(ADAPTER, make_model(sampler), [3, 4], settings, seeded_generator(1)))
    text = [token for block in blocks for token in block]
    assert len(text) == max_tokens
    assert all(0 <= token < VOCAB for token in text)
    assert len(blocks[0]) == min(max_tokens, LENGTH - 1)
    assert all(len(block) <= 5 for block in blocks[1:])


@each_sampler
def test_text_is_a_function_of_the_seed(sampler):
    def text(seed: int) -> list[list[int]]:
        settings = SamplingSettings(max_tokens=20)
        return list(draw_text(ADAPTER, make_model(sampler), [1], settings, seeded_generator(seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


@pytest.mark.parametrize("timed", [False, True])
def test_cached_sampler_equals_the_plain_one_in_fewer_runs(timed):
    changes = {"time_conditioning": True, "cond_dim": 8} if timed else {}
    settings = SamplingSettings(num_steps=200)
    plain, cached = make_model("ancestral", **changes), make_model("ancestral_cache", **changes)
    runs = calls_of(plain), calls_of(cached)
    assert infill(plain, after(1), settings, 3) == infill(cached, after(1), settings, 3)
    assert len(runs[0]) == 200
    assert 1 < len(runs[1]) <= LENGTH


def test_first_hitting_takes_a_step_per_token_and_refuses_another_number():
    model = make_model("first_hitting")
    runs = calls_of(model)
    infill(model, after(1), SamplingSettings(), 0)
    assert len(runs) == LENGTH
    with pytest.raises(ConfigError, match=r"num_steps=5 has no effect .*use ancestral_cache"):
        infill(model, after(1), SamplingSettings(num_steps=5), 0)


def test_samplers_agree_on_the_law_of_one_hole():
    """One token from its conditional, whichever sampler draws it: chi-square at the 1e-4 level."""
    window: list[int | None] = [1, 2, None, 4, 5]
    model = make_model()
    with torch.no_grad():
        masked = torch.tensor([[1, 2, VOCAB, 4, 5]])
        law = model(masked)[0, 2].double().softmax(-1)
    limit = 19 * (1 - 2 / (9 * 19) + 3.72 * math.sqrt(2 / (9 * 19))) ** 3
    for sampler in SAMPLERS:
        model = make_model(sampler)
        settings = SamplingSettings(num_steps=None if sampler == "first_hitting" else 2)
        drawn = torch.tensor([infill(model, window, settings, seed)[2] for seed in range(500)])
        expected = law * len(drawn)
        counts = torch.bincount(drawn, minlength=VOCAB)
        assert float(((counts - expected) ** 2 / expected).sum()) < limit


@pytest.mark.parametrize("sampler", ["ancestral", "ancestral_cache", "confidence"])
def test_greedy_drawing_in_one_step_takes_the_likeliest_tokens(sampler):
    model = make_model(sampler, num_sampling_steps=1)
    filled = infill(model, after(1), SamplingSettings(temperature=0), 4)
    window = torch.tensor([[1, *[VOCAB] * LENGTH]])
    with torch.no_grad():
        expected = model(window, torch.ones(1))[0, 1:].argmax(-1)
    assert filled[1:] == expected.tolist()


@each_sampler
def test_cuts_with_zero_probabilities_draw_tokens(sampler):
    for settings in (SamplingSettings(temperature=0), SamplingSettings(top_k=1, top_p=0.5)):
        filled = infill(make_model(sampler), after(1), settings, 5)
        assert all(0 <= token < VOCAB for token in filled)
