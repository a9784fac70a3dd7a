import pytest
import torch
from gpt2_models import make_config

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.draft_run import ModelDrafter, takes_back
from nanozoo_core.generation.speculative import Tally, speculative
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.decoding import drawn_tokens
from nanozoo_core.testing.laws import perturb
from nanozoo_gpt2.config import GPT2Config
from nanozoo_gpt2.model import GPT2

CONTEXT, VOCAB = 16, 29
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = make_config(vocab_size=VOCAB, seq_len=CONTEXT, num_layers=2, model_dim=32, num_heads=4)
    return perturb(GPT2(config).eval())


def draw(model, prompt=PROMPT, **settings):
    return drawn_tokens(DefaultModelAdapter(GPT2Config, GPT2), model, prompt, **settings)


@torch.no_grad()
def greedy_by_hand(model, prompt, num_tokens):
    """Full recomputation; past the context the older half goes and positions restart at 0."""
    window, drawn = list(prompt), []
    for _ in range(num_tokens):
        drawn.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window.append(drawn[-1])
        if len(window) > CONTEXT:
            window = window[-(CONTEXT // 2) :]
    return drawn


@pytest.mark.parametrize("num_tokens", [11, 12, 13, 40], ids=lambda n: f"{5 + n}-of-{CONTEXT}")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_and_uncached_draw_the_same(model, num_tokens, temperature):
    settings = {"max_tokens": num_tokens, "temperature": temperature}
    cached = draw(model, **settings)
    assert cached == draw(model, **settings, use_cache=False)
    assert len(cached) == num_tokens


@pytest.mark.parametrize("num_tokens", [11, 12, 40])
def test_past_the_context_the_older_half_is_dropped(model, num_tokens):
    expected = greedy_by_hand(model, PROMPT, num_tokens)
    assert draw(model, max_tokens=num_tokens, temperature=0.0) == expected


def test_the_same_seed_draws_the_same_and_another_does_not(model):
    assert draw(model, max_tokens=30) == draw(model, max_tokens=30)
    assert draw(model, max_tokens=30) != draw(model, max_tokens=30, seed=1)


def test_top_k_of_one_is_greedy(model):
    assert draw(model, max_tokens=20, top_k=1) == draw(model, max_tokens=20, temperature=0.0)


def test_wide_cuts_cut_nothing(model):
    plain = draw(model, max_tokens=20)
    assert draw(model, max_tokens=20, top_k=VOCAB, top_p=1.0) == plain
    assert draw(model, max_tokens=20, top_k=10 * VOCAB) == plain


def test_a_prompt_longer_than_the_context_keeps_its_end(model):
    long = [i % VOCAB for i in range(3 * CONTEXT)]
    settings = {"max_tokens": 1, "temperature": 0.0}
    assert draw(model, long, **settings) == draw(model, long[-CONTEXT:], **settings)


@pytest.mark.parametrize("num_drafts", [1, 5, 30], ids=lambda n: f"{n}-drafts")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_smaller_model_drafts_up_to_the_end_of_the_position_table(num_drafts, temperature):
    """Greedy text is the plain one, through several windows; drawn text is complete."""
    torch.manual_seed(1)
    shape = {"vocab_size": VOCAB, "seq_len": CONTEXT, "model_dim": 32, "num_heads": 4}
    model, small = (
        perturb(GPT2(make_config(**shape, num_layers=n)).double().eval()) for n in (2, 1)
    )
    small.embedding.weight.data.copy_(model.embedding.weight)  # so that some drafts stand
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    drafter = ModelDrafter(adapter, model, adapter, small, num_drafts=num_drafts)
    settings = SamplingSettings(temperature=temperature, max_tokens=40)
    tally = Tally()
    passes = speculative(drafter, PROMPT, settings, seeded_generator(0), tally=tally)
    drawn = [token for new in passes for token in new]
    assert len(drawn) == 40
    assert 0 < tally.acceptance < 1
    if temperature == 0:
        assert drawn == greedy_by_hand(model, PROMPT, 40)


def test_keys_and_values_can_be_taken_back(model):
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    assert takes_back(adapter, model, 1)
    assert takes_back(adapter, model, CONTEXT - 1)
