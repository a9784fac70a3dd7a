"""Casts of weights for products in half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nanozoo_core.machine.precision import cast_for_product, casts_kept


def test_a_weight_read_in_parts_is_cast_once_and_has_the_gradient_of_its_parts() -> None:
    weight = torch.randn(3, 8, requires_grad=True)
    x = torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16), casts_kept():
        first, second = (cast_for_product(weight, x) for _ in range(2))
        assert first.data_ptr() == second.data_ptr()
        found = F.linear(x, first[:, :4]) + 2 * F.linear(x, second[:, 4:])
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.linear(x, weight[:, :4]) + 2 * F.linear(x, weight[:, 4:])
    assert torch.equal(found, plain)
    upstream = torch.randn(5, 3).bfloat16()
    (expected,) = torch.autograd.grad(plain, weight, upstream)
    (gradient,) = torch.autograd.grad(found, weight, upstream)
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, expected)


def test_a_changed_weight_is_cast_anew() -> None:
    weight = torch.zeros(2, 2, requires_grad=True)
    x = torch.ones(1, 2)
    for value in (0.0, 1.0):
        with torch.no_grad():
            weight.fill_(value)
        with torch.autocast("cpu", torch.bfloat16), casts_kept():
            assert cast_for_product(weight, x).float().sum() == 4 * value
    assert cast_for_product(weight, x) is weight
