"""Caches of all heads, and self-speculative decoding: it gives what head 1 alone gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mtp_models import ADAPTER, SMALL, all_logits, build
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.generation.speculative import Tally, speculative
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.multi_token import VOCAB, random_tokens
from nanozoo_core.testing.speculation import (
    check_bfloat16_logits,
    check_greedy_rows,
    check_greedy_text,
    check_sampled_rows,
)
from nanozoo_mtp.drafter import HeadDrafter
from nanozoo_mtp.model import MTP

TYPES: dict[str, dict[str, Any]] = {"block": {}, "linear": {"head_type": "linear"}}
types = pytest.mark.parametrize("settings", TYPES.values(), ids=TYPES)


def build_exact(**settings: Any) -> MTP:
    """In float64, where no rounding decides between tokens; heads that often agree."""
    model = build(dtype=torch.float64, **settings).eval()
    if model.config.head_type == "block":
        first = model.config.num_trunk_layers
        for block in model.blocks[first + 1 :]:
            for ours, theirs in zip(
                block.parameters(), model.blocks[first].parameters(), strict=True
            ):
                ours.data = 0.5 * ours.data + 0.5 * theirs.data
    return model


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@types
@torch.no_grad()
def test_cached_decoding_of_every_head_is_the_parallel_form(settings: dict[str, Any]) -> None:
    model, tokens = build_exact(**settings), random_tokens(3, 40)
    expected = all_logits(model, tokens)
    cache = model.init_cache(3, 40, num_prediction_heads=3)
    pieces = []
    for start, end in ((0, 9), (9, 10), (10, 14), (14, 40)):
        found = model.horizons(tokens[:, start:end], cache)
        pieces.append(torch.stack([model.logits(features) for features in found]))
    assert_close(torch.cat(pieces, 2), expected)


@torch.no_grad()
def test_plain_decoding_keeps_nothing_of_further_heads() -> None:
    model = build_exact()
    assert ADAPTER.init_cache(model, 1, 10).keys.shape[0] == 2
    assert model.init_cache(1, 10, num_prediction_heads=3).keys.shape[0] == 4


@types
def test_greedy_drafts_change_nothing(settings: dict[str, Any]) -> None:
    model = build_exact(seq_len=160, **settings)
    tally = check_greedy_rows(ADAPTER, model, vocab_size=VOCAB)
    assert 0.02 < tally.acceptance < 0.98


@types
def test_greedy_text_past_the_context_is_the_plain_one(settings: dict[str, Any]) -> None:
    check_greedy_text(ADAPTER, build_exact(**settings), max_tokens=3 * SMALL["seq_len"])


@types
def test_greedy_text_in_float32_is_the_plain_one(settings: dict[str, Any]) -> None:
    check_greedy_text(ADAPTER, build_exact(**settings).float(), max_tokens=40)


@types
def test_bfloat16_rounds_checked_drafts_as_plain_decoding(settings: dict[str, Any]) -> None:
    check_bfloat16_logits(ADAPTER, build_exact(**settings), vocab_size=VOCAB)


@pytest.mark.parametrize(
    "cuts", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}], ids=["whole", "cut"]
)
@types
def test_sampled_drafts_change_no_distribution(
    settings: dict[str, Any], cuts: dict[str, Any]
) -> None:
    model = build(vocab_size=8, num_layers=3, num_mtp_tokens=2, **settings).eval()
    tally = check_sampled_rows(ADAPTER, model, SamplingSettings(**cuts), vocab_size=8)
    assert 0.05 < tally.acceptance < 0.99


@types
@torch.no_grad()
def test_after_rejections_the_state_is_that_of_a_fresh_reading(settings: dict[str, Any]) -> None:
    model, tokens = build_exact(**settings), random_tokens(3, 30)
    drafter, rows = HeadDrafter(model), torch.arange(3)
    lengths = torch.tensor([5, 9, 7])
    drafter.begin(tokens[:, :9], lengths, 40)
    for counts in ([1, 3, 2], [2, 1, 0], [3, 3, 3]):
        wrong = (tokens[rows[:, None], lengths[:, None] + torch.arange(3)] + 1) % 31
        kept = torch.arange(3) < torch.tensor(counts)[:, None]
        true = tokens[rows[:, None], lengths[:, None] + torch.arange(3)]
        checked = drafter.check(torch.where(kept, true, wrong))
        drafter.keep(torch.tensor(counts))
        lengths = lengths + torch.tensor(counts)
        fresh = HeadDrafter(model)
        logits = fresh.begin(tokens[:, : int(lengths.max())], lengths, 40)
        assert torch.equal(drafter.cache.lengths, lengths)
        for ours, theirs in zip(drafter.ahead, fresh.ahead, strict=True):
            assert_close(ours, theirs)
        for row, count in enumerate(counts):
            if count:
                assert_close(checked[row, count - 1], logits[row])


@pytest.mark.parametrize(
    "settings",
    [{"num_mtp_tokens": 1}, {"head_type": "shared", "mtp_weight_schedule": "linear_to_next"}],
    ids=["one-token", "shared"],
)
def test_without_heads_of_their_own_nothing_drafts(settings: dict[str, Any]) -> None:
    assert ADAPTER.drafter(build(**settings)) is None


def test_heads_that_all_predict_the_next_token_agree_on_a_constant_text() -> None:
    """Of a model that always draws token 5, each draft stands: n tokens per pass."""
    model = build_exact(head_type="linear", num_mtp_tokens=4)
    with torch.no_grad():
        for linear in model.maps:
            linear.weight.zero_()
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.zero_()
        model.embedding.weight.fill_(1)
        model.head.weight.zero_()
        model.head.weight[5] = 1
    tally = Tally()
    settings = SamplingSettings(temperature=0, max_tokens=41)
    drafted = speculative(HeadDrafter(model), [1], settings, seeded_generator(0), tally=tally)
    assert [t for new in drafted for t in new] == [5] * 41
    assert (tally.num_passes, tally.acceptance) == (10, 1)
