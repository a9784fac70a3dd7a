"""Decoding with rings and compressed keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.generation.draft_run import takes_back
from nanozoo_core.testing.decoding import (
    assert_equal,
    check_ragged_rows,
    check_taken_back,
    drawn_tokens,
)
from nanozoo_nsa.adapter import NSAAdapter
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.mixer import NSAMixer
from nanozoo_nsa.model import NSA
from nanozoo_nsa.selected.choice import chosen_by
from nanozoo_nsa.state import SPARE

ADAPTER = NSAAdapter(NSAConfig, NSA)
LENGTH = 230
SMALL: dict[str, Any] = {
    "num_layers": 2,
    "model_dim": 16,
    "num_heads": 4,
    "sliding_window_size": 9,
    "compress_block_size": 8,
    "compress_stride": 4,
    "selection_block_size": 8,
}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "two-kv-heads": {"num_kv_heads": 2, "num_selected_blocks": 6},
    "shared-kv": {"shared_kv": True},
    "no-positions": {"cmp_rope": "none"},
    "turned-before": {"cmp_rope": "post"},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def build(**settings: Any) -> NSA:
    torch.manual_seed(0)
    model = NSA(model_config("nsa", {"vocab_size": 31} | SMALL | settings)).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def random_tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(0))


@ways
def test_ragged_rows_decode_as_the_parallel_form(way: dict[str, Any]) -> None:
    check_ragged_rows(ADAPTER, build(**way), random_tokens(), torch.tensor([3, 21]), steps=200)


def test_several_tokens_at_once_and_taken_back() -> None:
    check_taken_back(
        ADAPTER,
        build(),
        random_tokens(),
        torch.tensor([30, 57]),
        kept=(0, 2, 5, 3, 1, 12),
        num_new=SPARE,
        vocab_size=31,
    )


@torch.no_grad()
def test_more_than_the_rings_hold_cannot_be_taken_back() -> None:
    model, tokens = build(), random_tokens()
    cache = ADAPTER.init_cache(model, 2, LENGTH)
    model(tokens[:, :50], cache)
    with pytest.raises(ValueError, match="17 positions cannot be taken back; at most 16 can"):
        cache.crop(torch.tensor([50, 33]))
    cache.crop(torch.tensor([50, 34]))


@torch.no_grad()
def test_room_grows_and_rows_go_on_one_by_one() -> None:
    mixer = build().mixers()[0]
    x = torch.randn(3, 100, 16, dtype=torch.float64)
    expected = mixer(x)
    state = mixer.empty_state(3, 1)
    lengths = torch.tensor([0, 40, 7])
    mixer(x[:, :40], state, lengths)
    generator = torch.Generator().manual_seed(0)
    while bool((lengths < 100).any()):
        rows = ((torch.rand(3, generator=generator) < 0.6) & (lengths < 100)).nonzero()[:, 0]
        found = mixer.step(x[rows, lengths[rows]], state, rows)
        assert_equal(found, expected[rows, lengths[rows]])
        lengths[rows] += 1
    assert torch.equal(state.lengths, lengths)


@torch.no_grad()
def test_a_long_text_takes_the_room_of_keys_once_and_rings() -> None:
    model = build(shared_kv=False)
    cache = model.init_cache(1, 1024)
    # Keys and values of 4 channels in float64, 2 blocks; compressed ones every 4 tokens.
    row = 2 * 4 * 8 * 2
    assert cache.num_bytes == row * (1024 + 255 + (9 + SPARE) + (8 + SPARE))
    report = ADAPTER.report(model)
    assert report["cache_bytes_per_token"] == row * 1.25


@pytest.mark.parametrize("way", ["default", "no-positions"])
def test_sampling_past_the_context_is_the_same_without_cache(way: str) -> None:
    model = build(seq_len=96, **WAYS[way])
    text = partial(drawn_tokens, ADAPTER, model, [1, 2], max_tokens=110)
    assert text() == text(use_cache=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kinds", [2, 1000], ids=["ties", "distinct"])
@torch.no_grad()
def test_decoding_reads_the_blocks_of_the_parallel_form(
    kinds: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 x 1600 choices; of two kinds of positions, compressed by their mean, many blocks have the
    same parts in another order: equal scores, whose sums round differently."""
    ties = {"cmp_rope": "none", "compress_mode": "mean", "num_kv_heads": 2}
    settings = SMALL | ties | {"compress_block_size": 4, "compress_stride": 2}
    config = model_config("nsa", settings | {"num_selected_blocks": 6})
    seen: list[Tensor] = []

    def recorded(*arguments: Any) -> Tensor:
        seen.append(chosen_by(*arguments))
        return seen[-1]

    monkeypatch.setattr("nanozoo_nsa.state.chosen_by", recorded)
    for seed in range(5):
        torch.manual_seed(seed)
        mixer = NSAMixer(config).to(dtype)
        x = torch.randn(kinds, 16, dtype=dtype)[torch.randint(kinds, (4, 200))]
        chosen = mixer.mix(x)[1].chosen
        seen.clear()
        state = mixer.empty_state(4, 200)
        for position in x.unbind(1):
            mixer.step(position, state)
        assert torch.equal(torch.stack(seen, dim=2), chosen)


def test_as_many_positions_can_be_taken_back_as_the_rings_spare() -> None:
    torch.manual_seed(0)
    model = NSA(model_config("nsa", SMALL | {"vocab_size": 29, "seq_len": LENGTH}))
    assert takes_back(ADAPTER, model, SPARE)
    assert not takes_back(ADAPTER, model, SPARE + 1)
