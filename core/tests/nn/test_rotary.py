import pytest
import torch

from nanozoo_core.nn.rotary import apply_rotary, rotary_angles


def rotate(x, positions, rotary_dim=None):
    cos, sin = rotary_angles(positions, rotary_dim or x.shape[-1])
    return apply_rotary(x, cos.to(x.dtype), sin.to(x.dtype))


def test_scores_depend_on_relative_position_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 1, 16, generator=generator, dtype=torch.float64)

    def score(query_position, key_position):
        at = torch.tensor
        return (rotate(q, at([query_position])) * rotate(k, at([key_position]))).sum(-1)

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=1e-5, atol=1e-5)
    assert (score(9, 4) - score(9, 5)).abs().max() > 1e-3


def test_rotation_keeps_the_norm_of_each_pair():
    x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    y = rotate(x, torch.arange(5))
    norm_of_pairs = [t.unflatten(-1, (2, 4)).square().sum(-2) for t in (x, y)]
    torch.testing.assert_close(*norm_of_pairs)


def test_position_zero_is_the_identity_and_one_turns_the_first_pair_by_one_radian():
    x = torch.tensor([1.0, 5.0, 0.0, 7.0]).expand(1, 1, 2, 4)
    y = rotate(x, torch.tensor([0, 1]))
    torch.testing.assert_close(y[0, 0, 0], x[0, 0, 0])
    one = torch.tensor(1.0)
    torch.testing.assert_close(y[0, 0, 1, [0, 2]], torch.stack([one.cos(), one.sin()]))


def test_channels_past_the_rotary_dim_pass_through():
    x = torch.randn(1, 2, 5, 12, generator=torch.Generator().manual_seed(0))
    y = rotate(x, torch.arange(5), rotary_dim=8)
    assert torch.equal(y[..., 8:], x[..., 8:])
    torch.testing.assert_close(y[..., :8], rotate(x[..., :8], torch.arange(5)))


def test_positions_may_differ_by_row():
    x = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2], [7, 8, 9]])
    y = rotate(x, positions)
    torch.testing.assert_close(y[1:], rotate(x[1:], positions[1]))


def test_low_precision_keeps_its_dtype_and_float32_angles():
    x = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(1000, 1004)
    y = apply_rotary(x.bfloat16(), *rotary_angles(positions, 8))
    assert y.dtype == torch.bfloat16
    # bf16 has 8 bits: 2^-8 per rounding, one of x and one of the result, on two terms.
    torch.testing.assert_close(y.float(), rotate(x, positions), rtol=0, atol=4 * 3 * 2**-8)


def test_odd_rotary_dim_is_refused():
    with pytest.raises(ValueError, match="rotary_dim=3"):
        rotary_angles(torch.arange(2), 3)


def plain_rotary(x, cos, sin):
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    first, second, rest = x.tensor_split([cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)


@pytest.mark.parametrize("rotary_dim", [8, 12], ids=["some-channels", "all-channels"])
@pytest.mark.parametrize(
    "positions", [torch.arange(7), torch.arange(14).view(2, 7)], ids=["shared", "by-row"]
)
def test_value_and_gradient_are_those_of_plain_autograd(rotary_dim, positions):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(2, 7, 3, 12, dtype=torch.float64, generator=generator)
    x = stored.transpose(1, 2).requires_grad_()  # (B, H, T, K), strided as in a model
    angles = rotary_angles(positions, rotary_dim)
    expected = plain_rotary(x, *angles)
    torch.testing.assert_close(apply_rotary(x, *angles), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    (ours,) = torch.autograd.grad(apply_rotary(x, *angles), x, grad)
    (theirs,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
