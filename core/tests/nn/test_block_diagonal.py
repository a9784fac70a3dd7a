from __future__ import annotations

import pytest
import torch

from nanozoo_core.nn.block_diagonal import BlockDiagonalLinear


def test_it_is_a_linear_layer_with_that_matrix() -> None:
    torch.manual_seed(0)
    layer = BlockDiagonalLinear(12, 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 12)
    expected = torch.nn.functional.linear(x, torch.block_diag(*layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.numel() == 12**2 // 3
    assert 0.45 < float(layer.weight.detach().abs().max()) <= 0.5  # 1 / sqrt(4)


def test_blocks_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks=5 does not divide the 12 channels"):
        BlockDiagonalLinear(12, 5)
