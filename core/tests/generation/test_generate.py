from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation.text import check_settings, generate_together, generate_tokens
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.ops.sampling import probabilities, sample
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import ToyVocabulary

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, 0.0])


def draw(settings: SamplingSettings, count: int = 2000) -> torch.Tensor:
    generator = seeded_generator(0)
    return torch.tensor([sample(LOGITS, settings, generator) for _ in range(count)])


def test_temperature_zero_is_argmax() -> None:
    assert set(draw(SamplingSettings(temperature=0), 10).tolist()) == {0}


def test_top_k_one_is_greedy() -> None:
    assert set(draw(SamplingSettings(top_k=1), 50).tolist()) == {0}


def test_wide_cuts_are_no_ops() -> None:
    plain = probabilities(LOGITS, SamplingSettings())
    wide = probabilities(LOGITS, SamplingSettings(top_k=9, top_p=1.0))
    torch.testing.assert_close(plain, LOGITS.double().softmax(-1), rtol=0, atol=1e-15)
    torch.testing.assert_close(plain, wide, rtol=0, atol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probs = LOGITS.double().softmax(-1)
    order = probs.argsort(descending=True)
    reached = float(probs[order[:2]].sum())
    kept = probabilities(LOGITS, SamplingSettings(top_p=reached - 1e-9))
    assert set(kept.nonzero().flatten().tolist()) == set(order[:2].tolist())
    assert float(kept.sum()) == pytest.approx(1)


@pytest.fixture(params=[True, False], ids=["denormals_are_zero", "denormals_count"])
def denormals(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs flush them to zero; other processes need not."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals")
@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature: float) -> None:
    for logits in (LOGITS, -LOGITS, 1e4 * LOGITS):
        found = probabilities(logits, SamplingSettings(temperature=temperature))
        greedy = probabilities(logits, SamplingSettings(temperature=0))
        torch.testing.assert_close(found, greedy, rtol=0, atol=0)


def test_top_k_keeps_k_of_equal_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    found = probabilities(logits, SamplingSettings(top_k=2))
    half = torch.tensor([[0.0, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(found, half, rtol=0, atol=1e-15)


@pytest.mark.usefixtures("denormals")
def test_the_smallest_top_p_keeps_one_token() -> None:
    found = probabilities(LOGITS, SamplingSettings(top_p=5e-324))
    assert found.tolist() == [1, 0, 0, 0, 0]


def test_draws_follow_the_probabilities() -> None:
    """A chi-square statistic with 4 degrees of freedom stays below its 0.999 quantile."""
    count = 4000
    expected = probabilities(LOGITS, SamplingSettings(temperature=1.5)) * count
    observed = torch.bincount(draw(SamplingSettings(temperature=1.5), count), minlength=5)
    assert float(((observed - expected) ** 2 / expected).sum()) < 18.47


def test_settings_out_of_range_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(SamplingSettings(max_tokens=0, temperature=-1, top_k=-2, top_p=math.inf))
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("max_tokens", [1, 20])
def test_texts_written_together_are_those_written_alone(
    temperature: float, max_tokens: int
) -> None:
    """Some end at a separator, one token of four, long before others; the context ends at 5."""
    torch.manual_seed(0)
    model = ControlModel(ControlConfig(4, 5, 1, 16, num_heads=2, mlp_ratio=4)).double()
    model.max_context = 5
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    adapter, vocabulary = DefaultModelAdapter(ControlConfig, ControlModel), ToyVocabulary(4)
    settings = SamplingSettings(max_tokens=max_tokens, temperature=temperature)
    prompt, seeds = "1 2", [4, 0, 9, 7, 1]
    texts: list[list[int]] = [[] for _ in seeds]
    steps = generate_together(adapter, model, vocabulary, prompt, settings, seeds)
    for step in steps:
        for text, new in zip(texts, step, strict=True):
            text += new
    for seed, text in zip(seeds, texts, strict=True):
        one = replace(settings, seed=seed)
        alone = generate_tokens(adapter, model, vocabulary, prompt, one)
        assert text == [token for piece in alone for token in piece]
    assert model.training
    if temperature and max_tokens > 1:
        assert len({len(text) for text in texts} - {max_tokens}) > 0
