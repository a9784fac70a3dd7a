"""Decoding from rings equals full recomputation, past the windows and across documents."""

from functools import partial

import pytest
import torch
from cbg_models import FULL, make_model, perturb, tokens_of

from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.decoding import drawn_tokens
from nanozoo_current_best_gpt.cache import SPARE

ADAPTER = load_adapter("current_best_gpt")
LENGTH = 90  # the longest ring holds 9 + 1 + SPARE = 26 tokens


def make(**changes):
    model = make_model(FULL, **changes)
    perturb(model, 0.2)
    tokens = tokens_of(3, LENGTH)
    tokens[0, 40] = tokens[1, 77] = tokens[2, 5] = 0
    with torch.no_grad():
        return model, tokens, model(tokens)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"document_mask": False},
        {"document_mask": False, "reset_at_document": False},
        {"key_offset": False, "dc_layers": (), "dc_window": 32},
        {"mudd": False, "mudd_dim": 32, "windows": ((4, 11),)},
    ],
    ids=str,
)
@torch.no_grad()
def test_rings_equal_full_recomputation(changes):
    model, tokens, full = make(**changes)
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    lengths = torch.tensor([3, 31, 44])
    logits = ADAPTER.prefill(model, tokens[:, :44], lengths, cache)
    rows = torch.arange(3)
    assert_close(logits, full[rows, lengths - 1])
    for offset in range(LENGTH - 44):
        new = tokens[rows, lengths + offset][:, None]
        assert_close(ADAPTER.append(model, new, cache)[:, 0], full[rows, lengths + offset])
    assert cache.lengths.tolist() == [3 + LENGTH - 44, 31 + LENGTH - 44, LENGTH]


@pytest.mark.parametrize("count", [2, SPARE, SPARE + 1, 50])
@torch.no_grad()
def test_several_tokens_at_once_equal_one_by_one(count):
    model, tokens, full = make()
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    ADAPTER.prefill(model, tokens[:, :33], torch.full((3,), 33), cache)
    assert_close(ADAPTER.append(model, tokens[:, 33 : 33 + count], cache), full[:, 33 : 33 + count])


@torch.no_grad()
def test_forgotten_tokens_leave_no_trace():
    model, tokens, full = make()
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    ADAPTER.prefill(model, tokens[:, :40], torch.full((3,), 40), cache)
    ADAPTER.append(model, torch.full((3, SPARE), 7), cache)
    cache.crop(torch.tensor([40, 40 + 3, 40]))
    cache.crop(torch.full((3,), 40))
    found = ADAPTER.append(model, tokens[:, 40 : 40 + SPARE], cache)
    assert_close(found, full[:, 40 : 40 + SPARE])


@torch.no_grad()
def test_more_than_the_rings_can_take_back_is_refused():
    model, tokens, _ = make()
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    ADAPTER.prefill(model, tokens[:, :60], torch.full((3,), 60), cache)
    with pytest.raises(ValueError, match=f"the last {SPARE} tokens; {SPARE + 1} are asked"):
        cache.crop(torch.full((3,), 60 - SPARE - 1))
    with pytest.raises(ValueError, match="holds 90 tokens per row; 91 are asked"):
        ADAPTER.append(model, tokens[:, :31], cache)


def test_memory_follows_the_windows_and_not_the_text():
    model, _, _ = make()
    one, two = (ADAPTER.init_cache(model, 1, length).num_bytes for length in (1000, 10_000))
    assert one == two
    # Layer 0 pairs its heads: 5 rows are 3 tokens; layers 1 and 3 reach 9.
    rows = sum(reach + 1 + SPARE for reach in (3, 9, 9))
    assert one == rows * 2 * 32 * 4


@torch.no_grad()
def test_text_goes_on_past_the_trained_length():
    model, _, _ = make()
    assert model.max_context is None
    text = partial(drawn_tokens, ADAPTER, model, [0, 3], max_tokens=80)
    assert text() == text(use_cache=False)


def test_a_window_longer_than_the_training_text_limits_the_context():
    assert make_model(FULL, seq_len=8).max_context == 8
    assert make_model(FULL, eval_window_long=200).max_context == 64
