"""Laws of the positions of 2017. T positions, D model_dim."""

import pytest
import torch

from nanozoo_vanilla.historical import sinusoids

DIM = 32


def test_sinusoids_at_known_places():
    table = sinusoids(torch.arange(50), 8)
    assert torch.equal(table[0], torch.tensor([0.0, 1.0] * 4))
    steps = torch.arange(50.0)
    torch.testing.assert_close(table[:, 0], steps.sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(table[:, 1], steps.cos(), rtol=0, atol=1e-6)
    # Pair i turns by 10000^(-2i/8): 1, 0.1, 0.01, 0.001.
    assert table[1].tolist() == pytest.approx(
        [0.841471, 0.540302, 0.099833, 0.995004, 0.0099998, 0.99995, 0.001, 0.9999995], abs=1e-6
    )


def test_a_shift_turns_every_pair_of_sinusoids():
    shift, pairs = 17, DIM // 2
    table = sinusoids(torch.arange(100), DIM).unflatten(-1, (pairs, 2))  # (T, D/2, 2)
    turn = shift * 10000 ** (-2 * torch.arange(pairs, dtype=torch.float64) / DIM)
    cos, sin = turn.cos().float(), turn.sin().float()
    sines, cosines = table[:-shift].unbind(-1)
    turned = torch.stack([sines * cos + cosines * sin, cosines * cos - sines * sin], dim=-1)
    torch.testing.assert_close(table[shift:], turned, rtol=0, atol=1e-5)


def test_the_product_of_two_sinusoids_depends_on_their_distance():
    shift = 5
    table = sinusoids(torch.arange(100), DIM)
    turn = shift * 10000 ** (-2 * torch.arange(DIM // 2, dtype=torch.float64) / DIM)
    products = (table[:-shift] * table[shift:]).sum(-1)
    torch.testing.assert_close(
        products, torch.full_like(products, turn.cos().sum().item()), rtol=0, atol=1e-4
    )
