"""The bound and the samples of block diffusion against all masks, orders and texts."""

from __future__ import annotations

import math

import pytest
import torch
from block_cases import NUM_DRAWS, NUM_TEXTS, SMALL, exact_bound, exact_law, small, states, texts
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.contract import Draw, Step
from nanozoo_core.testing.diffusion.models import watch
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.statistics import chi_square, chi_square_limit
from nanozoo_mdl.model import MDLM

ADAPTER = SMALL.adapter


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_bound_lies_above_the_law_of_samples(size):
    """For every text, and at it where blocks have one token: there is only one order."""
    model = small(size)
    bound, nats = exact_bound(model, texts()), -exact_law(model, texts()).log()
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)
    if size == 1:
        assert_close(bound, nats, rtol=0, atol=1e-12)
    else:
        assert bool((bound > nats - 1e-12).all())
        assert float((bound - nats).max()) > 0.01
    assert float(nats.std()) > 0.3


@pytest.mark.parametrize("size", [1, 4])
def test_score_is_the_bound_over_all_masks(size):
    """The mean of many draws of each text, and of the training loss, by count and by time."""
    model = small(size)
    batch = batch_of(texts().repeat(25, 1))
    expected = exact_bound(model, texts())
    with torch.no_grad():
        nats = ADAPTER.nll(model, batch, Draw(0)).nats.view(25, NUM_TEXTS)
    error = nats.std(0) / math.sqrt(25)
    assert bool(((nats.mean(0) - expected).abs() < 4.5 * error + 1e-9).all())
    few = batch.take(slice(10 * NUM_TEXTS))
    for changes in ({}, {"time_sampler": "t", "t_min": 0.0}, {"stratified": False}):
        trained = small(size, **changes)
        with torch.no_grad():
            steps = [ADAPTER.training_loss(trained, few, Step(n, 0.0, 0)) for n in range(16)]
        losses = torch.stack([6 * loss.value for loss in steps])
        error = float(losses.std()) / math.sqrt(16)
        assert abs(float(losses.mean()) - float(expected.mean())) < 4.5 * error + 1e-6


def drawn(model: MDLM, known: list[int], count: int, **settings: object) -> Tensor:
    """(count, 7) texts behind `known` tokens."""
    window = torch.tensor([*known, *[model.mask_id] * (7 - len(known))])
    *_, last = states(model, window.repeat(count, 1), **settings)
    return last


def numbers(windows: Tensor) -> Tensor:
    """The number of each text of (B, 7) in the order of `texts`."""
    return (windows[:, 1:] * 2 ** torch.arange(5, -1, -1)).sum(1)


def fits(windows: Tensor, law: Tensor) -> bool:
    """Whether counts of texts are such as a law (64,) gives."""
    possible = law > 0
    counts = torch.bincount(numbers(windows), minlength=NUM_TEXTS)
    assert int(counts[~possible].sum()) == 0
    degrees = int(possible.sum()) - 1
    return chi_square(counts[possible], law[possible]) < chi_square_limit(degrees)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_first_hitting_draws_by_the_law_of_all_orders(size, use_cache):
    model = small(size, sampler="first_hitting")
    windows = drawn(model, [1], NUM_DRAWS, use_cache=use_cache)
    assert fits(windows, exact_law(model, texts()))
    assert not fits(windows, exact_law(small(6), texts()))


def test_ancestral_draws_by_that_law_as_steps_grow():
    """In blocks of one token by any number of steps."""
    model = small(4, sampler="ancestral_cache")
    law = exact_law(model, texts())
    assert not fits(drawn(model, [1], NUM_DRAWS, num_steps=1), law)
    assert fits(drawn(model, [1], NUM_DRAWS, num_steps=30), law)
    model = small(1, sampler="ancestral")
    assert fits(drawn(model, [1], NUM_DRAWS, num_steps=1), exact_law(model, texts()))


@pytest.mark.parametrize("known", [[1, 0], [1, 1, 0, 1], [1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0]])
def test_prompts_may_end_anywhere_in_a_block(known):
    """Of blocks of four: the holes of the first that has any are drawn given all of the prompt."""
    model = small(4, sampler="first_hitting")
    windows = texts()
    begins = (windows[:, : len(known)] == torch.tensor(known)).all(1)
    law = exact_law(model, windows, len(known)) * begins
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert fits(drawn(model, known, NUM_DRAWS), law)


def test_a_text_that_ends_within_a_block_is_the_begin_of_a_whole_one():
    """The network reads whole blocks, and the law of what is kept is that of the first tokens."""
    model = small(4, sampler="first_hitting")
    window = torch.tensor([1, *[model.mask_id] * 3]).repeat(NUM_DRAWS, 1)
    seen = watch(model)
    *_, short = states(model, window)
    assert {tokens.shape[1] for tokens in seen} == {5}
    *_, whole = states(model, torch.tensor([1, *[model.mask_id] * 6]).repeat(NUM_DRAWS, 1))
    law = exact_law(model, texts()).view(8, 8).sum(1)
    for windows in (short, whole):
        counts = torch.bincount(numbers(windows[:, [0, 1, 2, 3, 1, 1, 1]]) // 8, minlength=8)
        assert chi_square(counts, law) < chi_square_limit(7)
    # The window ends here, and so does its last block.
    seen.clear()
    *_, _ = states(model, torch.tensor([[1, 0, 1, 1, 0, model.mask_id]]))
    read = [tokens.shape[1] for tokens in seen]
    assert read in ([5, 2], [5, 2, 2])  # what is finished, and one draw or both
