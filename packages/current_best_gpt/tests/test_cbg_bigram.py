"""The hash of token pairs against Python's integers, and what the signs are for."""

import torch
from cbg_models import FULL, make_model
from safetensors.torch import load, save

from nanozoo_current_best_gpt.blocks import Bigram


def make_bigram(num_rows=1001, num_signs=64, dim=16):
    torch.manual_seed(0)
    bigram = Bigram(num_rows, num_signs, dim)
    torch.nn.init.normal_(bigram.table.weight)
    return bigram


def test_rows_are_those_of_whole_numbers():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(65536, (3, 50), generator=generator)
    tokens[0, :4] = torch.tensor([65535, 65535, 0, 65534])
    before = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
    starts = torch.rand(3, 50, generator=generator) < 0.1
    bigram = make_bigram(377_280, 8192, 2)
    rows, signs = bigram.rows(tokens, before, starts)
    for x, y, start, row, sign in zip(
        *(t.flatten().tolist() for t in (tokens, before, starts, rows, signs)), strict=True
    ):
        # 64-bit: no product of a 16-bit id wraps.
        assert row == (377_279 if start else (36313 * x ^ 27191 * y) % 377_279)
        assert sign == (0 if start else (x ^ y) % 8192)


def test_signs_tell_pairs_of_one_row_apart():
    bigram = make_bigram(num_rows=3)
    tokens = torch.arange(40)[None]
    before = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    rows, signs = bigram.rows(tokens, before, starts)
    vectors = bigram(tokens, before, starts)[0]
    same_row = (rows[0, :, None] == rows[0]) & (signs[0, :, None] != signs[0])
    assert same_row.any()
    assert not torch.isclose(vectors[:, None], vectors[None]).all(-1)[same_row].any()


def test_signs_are_plus_and_minus_one_and_are_stored():
    model = make_model(FULL)
    signs = model.bigram.signs
    assert sorted(signs.unique().tolist()) == [-1, 1]
    assert 0.4 < (signs == 1).float().mean() < 0.6
    stored = load(save(dict(model.state_dict())))
    other = make_model(FULL, seed=1)
    assert not torch.equal(other.bigram.signs, signs)
    other.load_state_dict(stored)
    assert torch.equal(other.bigram.signs, signs)
