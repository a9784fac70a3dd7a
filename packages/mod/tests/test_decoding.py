"""Decoding with caches that hold the chosen tokens alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.testing.decoding import (
    assert_equal,
    check_ragged_rows,
    check_taken_back,
    drawn_tokens,
)
from nanozoo_mod.adapter import MoDAdapter
from nanozoo_mod.config import MoDConfig
from nanozoo_mod.model import MoD

ADAPTER = MoDAdapter(MoDConfig, MoD)
WAYS: dict[str, dict[str, Any]] = {
    "predictor": {},
    "every-block": {"every_other": False},
    "router": {"causal_router": "router", "router_gate": "sigmoid"},
    "random": {"router_type": "random"},
    "all-tokens": {"capacity": 1.0, "router_gate": "one"},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
LENGTH = 64


def build(**settings: Any) -> MoD:
    torch.manual_seed(0)
    config = model_config("mod", {"vocab_size": 31, "seq_len": LENGTH, "model_dim": 32, **settings})
    model = MoD(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for block in model.routed_blocks:
            if config.has_predictor:
                block.predictor_out.mul_(5)
    return model


def random_tokens(batch: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(0))


@ways
def test_ragged_rows_decode_as_the_parallel_form(way: dict[str, Any]) -> None:
    lengths = torch.tensor([3, 17, 9])
    check_ragged_rows(ADAPTER, build(**way), random_tokens(), lengths, steps=LENGTH - 17)


@ways
def test_several_tokens_at_once_and_taken_back(way: dict[str, Any]) -> None:
    lengths = torch.tensor([3, 17, 9])
    model, tokens = build(**way), random_tokens()
    check_taken_back(ADAPTER, model, tokens, lengths, kept=(0, 2, 5), num_new=7, vocab_size=31)


@torch.no_grad()
def test_a_prompt_from_which_a_block_takes_nothing() -> None:
    model, tokens = build(), random_tokens()
    _, (routing, _) = model.encode(tokens)
    logits = routing.logits
    block = model.routed_blocks[0]
    block.threshold.copy_(logits[:, :20].max() + 1e-3)
    assert (logits[:, 20:] > block.threshold).any()
    full = model(tokens)
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    found = ADAPTER.prefill(model, tokens[:, :20], torch.full((3,), 20), cache)
    assert_equal(found, full[:, 19])
    assert cache.routed[0].entries.lengths.tolist() == [0, 0, 0]
    for place in range(20, LENGTH):
        assert_equal(
            ADAPTER.append(model, tokens[:, place : place + 1], cache), full[:, place, None]
        )
    assert int(cache.routed[0].entries.lengths.sum()) > 0


@torch.no_grad()
def test_a_routed_block_stores_what_it_took_and_where() -> None:
    model, tokens = build(), random_tokens()
    _, routings = model.encode(tokens)
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    model(tokens[:, :40], cache)
    model(tokens[:, 40:], cache)
    for routing, stored in zip(routings, cache.routed, strict=True):
        counts = stored.entries.lengths
        assert torch.equal(counts, routing.chosen.sum(1))
        for row in range(3):
            places = routing.chosen[row].nonzero()[:, 0]
            assert torch.equal(stored.positions[row, : counts[row]], places)


@torch.no_grad()
def test_room_for_chosen_tokens_begins_small_and_grows() -> None:
    model, tokens = build(capacity=0.0625), random_tokens()
    full = model(tokens)
    cache = ADAPTER.init_cache(model, 3, LENGTH)
    assert cache.routed[0].entries.max_length == 8
    assert cache.num_bytes < 0.6 * 2 * 4 * tokens.numel() * 32 * 8  # of four full blocks, float64
    for block in model.routed_blocks:
        block.threshold.fill_(-torch.inf)
    full = model(tokens)
    for place in range(LENGTH):
        assert_equal(model(tokens[:, place : place + 1], cache), full[:, place, None])
    assert cache.routed[0].entries.lengths.tolist() == [LENGTH] * 3


@ways
def test_sampling_past_the_context_is_the_same_without_cache(way: dict[str, Any]) -> None:
    model = build(**way)
    text = partial(drawn_tokens, ADAPTER, model, [1, 2], max_tokens=90)
    assert text() == text(use_cache=False)
