"""Checks of a decoding state: with it a model gives what it gives to the whole text at once.

B rows, T tokens, V vocabulary. Give models in float64, where the two agree to 1e-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.text import draw_text


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def check_ragged_rows(
    adapter: DefaultModelAdapter, model: nn.Module, tokens: Tensor, lengths: Tensor, *, steps: int
) -> None:
    """Prompts of `lengths` (B,), read together, then `steps` tokens of each row one by one."""
    full = model(tokens)  # (B, T, V)
    rows, most = torch.arange(len(tokens)), int(lengths.max())
    cache = adapter.init_cache(model, *tokens.shape)
    found = adapter.prefill(model, tokens[:, :most], lengths, cache)
    assert_equal(found, full[rows, lengths - 1])
    for step in range(steps):
        new = tokens[rows, lengths + step][:, None]
        assert_equal(adapter.append(model, new, cache)[:, 0], full[rows, lengths + step])


@torch.no_grad()
def check_goes_on_from_ragged_rows(model: Any, tokens: Tensor) -> None:
    """Three rows (3, T >= 16), cut back to lengths of their own, take one or several more."""
    full = model(tokens)  # (3, T, V)
    rows = torch.arange(3)[:, None]
    cache = model.init_cache(*tokens.shape)
    assert_equal(model(tokens[:, :10], cache=cache), full[:, :10])
    cache.crop(torch.tensor([3, 10, 7]))
    for num_new in (1, 4, 1):
        at = cache.positions(num_new)
        assert_equal(model(tokens[rows, at], cache=cache), full[rows, at])


def drawn_tokens(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    *,
    seed: int = 0,
    **settings: Any,
) -> list[int]:
    """The new tokens after a prompt, of sampling with a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    pieces = draw_text(adapter, model, prompt, SamplingSettings(**settings, seed=seed), generator)
    return [token for piece in pieces for token in piece]


@torch.no_grad()
def check_taken_back(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    tokens: Tensor,
    lengths: Tensor,
    *,
    kept: Sequence[int],
    num_new: int,
    vocab_size: int,
) -> None:
    """`num_new` tokens at a time, of which the first `kept` are right; the rest is taken back."""
    full = model(tokens)  # (B, T, V)
    rows = torch.arange(len(tokens))
    cache = adapter.init_cache(model, *tokens.shape)
    adapter.prefill(model, tokens[:, : int(lengths.max())], lengths, cache)
    for count in kept:
        guess = tokens[rows[:, None], lengths[:, None] + torch.arange(num_new)]
        guess[:, count:] = (guess[:, count:] + 5) % vocab_size
        found = adapter.append(model, guess, cache)
        for offset in range(count):
            assert_equal(found[:, offset], full[rows, lengths + offset])
        lengths = lengths + count
        cache.crop(lengths)
        assert torch.equal(cache.lengths, lengths)
    new = tokens[rows, lengths][:, None]
    assert_equal(adapter.append(model, new, cache)[:, 0], full[rows, lengths])
