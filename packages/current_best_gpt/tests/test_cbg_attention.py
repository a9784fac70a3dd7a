"""The record's additions to attention, each against its equation written out."""

import math

import pytest
import torch
from cbg_models import FULL, make_model

from nanozoo_core.nn.attention import attend
from nanozoo_current_best_gpt.attention import (
    exclude_own,
    interleave,
    mix_heads,
    offset_keys,
    separate,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heads_interleave_as_the_memory_of_their_tokens():
    x = normal(2, 6, 5, 8)  # (B, H, T, K)
    view = x.transpose(1, 2).reshape(2, 10, 3, 8)  # rows of half the heads, two for each token
    assert torch.equal(interleave(x), view.transpose(1, 2))
    assert torch.equal(separate(interleave(x)), x)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_paired_heads_share_a_causal_window_over_both(window):
    q, k, v = (normal(2, 4, 7, 8, seed=s) for s in range(3))
    found = separate(attend(*(interleave(x) for x in (q, k, v)), window=window))
    for j in range(2):
        expected = torch.zeros(2, 2, 7, 8, dtype=torch.float64)
        for row in range(14):
            rows = [r for r in range(row + 1) if row - r <= window]
            pick = [(j if r % 2 == 0 else j + 2, r // 2) for r in rows]
            keys = torch.stack([k[:, h, t] for h, t in pick], 1)
            values = torch.stack([v[:, h, t] for h, t in pick], 1)
            query = q[:, j if row % 2 == 0 else j + 2, row // 2]
            weights = ((keys @ query[..., None])[..., 0] / math.sqrt(8)).softmax(-1)
            expected[:, row % 2, row // 2] = (weights[..., None] * values).sum(1)
        torch.testing.assert_close(found[:, j], expected[:, 0])
        torch.testing.assert_close(found[:, j + 2], expected[:, 1])


def test_a_pair_of_equal_heads_is_one_head_over_keys_seen_twice():
    q, k, v = (normal(1, 1, 9, 8, seed=s) for s in range(3))
    pair = [torch.cat([x, x], dim=1) for x in (q, k, v)]
    found = separate(attend(*(interleave(x) for x in pair)))
    # At its second row a token has met every key, its own included, twice: the weights of once.
    torch.testing.assert_close(found[:, 1:], attend(q, k, v))


def test_turning_follows_the_token_and_the_parity_of_the_head():
    """Scores in a pair depend on 2 t + head mod 2 alone."""
    model = make_model(FULL)
    attention = model.blocks[0].attention
    view = model._look(torch.ones(1, 12, dtype=torch.int64), None, 0)
    x = normal(1, 4, 1, 8).float().expand(1, 4, 12, 8)
    turned = attention._turn(x, view)
    plain = model._look(torch.ones(1, 24, dtype=torch.int64), None, 0)
    for head in range(4):
        positions = range(head % 2, 24, 2)
        expected = model.blocks[1].attention._turn(x[:, :, :1].expand(1, 4, 24, 8), plain)
        torch.testing.assert_close(turned[:, head], expected[:, head, positions])


def test_keys_take_their_still_half_from_the_token_before():
    k = normal(2, 3, 6, 8)
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[:, 0] = starts[1, 4] = True
    found = offset_keys(k, starts)
    assert torch.equal(found[..., :4], k[..., :4])
    for row in range(2):
        for t in range(6):
            source = t if starts[row, t] else t - 1
            assert torch.equal(found[row, :, t, 4:], k[row, :, source, 4:])


def test_compiled_keys_shift_alike():
    k, starts = normal(2, 3, 6, 8), torch.zeros(2, 6, dtype=torch.bool)
    starts[:, 0] = True
    compiled = torch.compile(offset_keys, backend="aot_eager")
    assert torch.equal(compiled(k, starts), offset_keys(k, starts))


def test_a_window_ends_after_its_last_key():
    q, k = torch.zeros(1, 1, 20, 8), torch.zeros(1, 1, 20, 8)
    v = torch.eye(20)[None, None, :, :8]
    seen = attend(q, k, torch.eye(20)[None, None], window=4)[0, 0] > 0
    assert v.shape[-1] == 8
    assert seen[10].nonzero().flatten().tolist() == [6, 7, 8, 9, 10]


def test_exclusion_takes_the_component_along_the_own_value():
    y, v = normal(2, 3, 5, 8), normal(2, 3, 5, 8, seed=1)
    left = exclude_own(y, v, torch.ones(2, 3, 5, 1, dtype=torch.float64))
    torch.testing.assert_close((left * v).sum(-1), torch.zeros(2, 3, 5, dtype=torch.float64))
    assert torch.equal(exclude_own(y, torch.zeros_like(v), torch.ones(2, 3, 5, 1)), y)


@pytest.mark.parametrize("window", [1, 3, 4, 50])
@pytest.mark.parametrize("with_documents", [False, True])
def test_heads_mix_by_the_sum_of_their_attention(window, with_documents):
    q, k, v = (normal(2, 3, 11, 4, seed=s).float() for s in range(3))
    read, write = (normal(2, 11, 3, seed=s).float() for s in (3, 4))
    documents = None
    t = torch.arange(11)
    mask = (t[:, None] >= t) & (t[:, None] - t < window)
    mask = mask.expand(2, 11, 11).clone()
    if with_documents:
        documents = torch.zeros(2, 11, dtype=torch.int64)
        documents[0, 5:] = documents[1, 2:] = 1
        mask &= documents[:, :, None] == documents[:, None]
    scores = (q @ k.mT / 2).masked_fill(~mask[:, None], -torch.inf)
    mixed = torch.einsum("bth,bhts->bts", read, scores.softmax(-1))
    expected = torch.einsum("bth,bts,bhsk->bhtk", write, mixed, v)
    found = mix_heads(q, k, v, read, write, window=window, documents=documents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
