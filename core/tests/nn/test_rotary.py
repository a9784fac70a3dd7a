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
