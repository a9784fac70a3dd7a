import math

import pytest
import torch
from rd_models import build

from nanozoo_rd.noise import truncated_normal

KEY = torch.tensor(1234567)


def test_noise_is_a_cut_normal():
    x = truncated_normal(KEY, torch.arange(512), 256, torch.arange(8)).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    inside = math.erf(3 / math.sqrt(2))
    density = math.exp(-4.5) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * 3 * density / inside
    count = x.numel()
    assert x.abs().max() <= 3
    assert abs(float(x.mean())) < 4 * (variance / count) ** 0.5
    assert float(x.var()) == pytest.approx(variance, abs=4 * (2 / count) ** 0.5)
    ranks = (normal.cdf(x.flatten().sort().values) - (1 - inside) / 2) / inside
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    assert (ranks - uniform).abs().max() < 1.63 / count**0.5  # Kolmogorov-Smirnov at 1 percent


def test_neighbours_are_independent():
    x = truncated_normal(KEY, torch.arange(300), 64, torch.arange(20)).double()
    count = x[:, 1:].numel()
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        assert abs(float((a * b).mean())) < 4 / (count * 0.9) ** 0.5


def test_each_value_depends_on_key_row_position_and_channel_alone():
    positions, rows = torch.arange(20), torch.tensor([3, 9])
    whole = truncated_normal(KEY, positions, 16, rows)
    torch.testing.assert_close(
        truncated_normal(KEY, positions[5:9], 16, rows[1:]), whole[1:, 5:9], rtol=0, atol=0
    )
    ragged = torch.stack([positions[2:6], positions[7:11]])
    shared = truncated_normal(KEY, positions, 16)
    expected = torch.stack([shared[2:6], shared[7:11]])
    torch.testing.assert_close(truncated_normal(KEY, ragged, 16), expected, rtol=0, atol=0)
    assert not torch.equal(truncated_normal(KEY + 1, positions, 16, rows), whole)


def test_the_initial_state_has_the_scale_of_the_embedding():
    model = build()
    state = model.initial_state(7, torch.arange(64), torch.arange(64))
    embedded = math.sqrt(model.config.model_dim) * model.embedding.weight.detach()
    assert float(state.std()) == pytest.approx(0.6239, rel=0.01)  # sqrt(2/5), less the cut
    assert float(embedded.std()) == pytest.approx(float(state.std()), rel=0.05)


def test_a_deviation_of_zero_starts_from_zeros():
    assert build(s0_std=0.0).initial_state(7, torch.arange(9)).abs().max() == 0
