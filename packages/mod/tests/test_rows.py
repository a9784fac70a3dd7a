import pytest
import torch

from nanozoo_mod.rows import add_rows, take_rows


def inputs(num_rows: int, chosen: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    index = torch.randperm(num_rows)[:chosen]
    gate, increment = torch.randn(chosen).double(), torch.randn(chosen, 5).double()
    x = torch.randn(num_rows, 5).double()
    return x.requires_grad_(), index, gate.requires_grad_(), increment.requires_grad_()


@pytest.mark.parametrize(("num_rows", "chosen"), [(1, 1), (7, 3), (64, 64), (9, 0)])
def test_take_and_add_equal_plain_indexing(num_rows: int, chosen: int) -> None:
    x, index, gate, increment = inputs(num_rows, chosen)
    stream, rows = take_rows(x, index)
    found = add_rows(stream, index, gate, rows.sin() * increment)
    expected = x.clone()
    expected[index] = x[index] + gate[:, None] * (x[index].sin() * increment)
    assert torch.equal(found, expected)
    weight = torch.randn_like(x)
    leaves = (x, gate, increment)
    one = torch.autograd.grad((found * weight).sum(), leaves)
    two = torch.autograd.grad((expected * weight).sum(), leaves)
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    x, index, gate, increment = inputs(7, 3)

    def function(x: torch.Tensor, gate: torch.Tensor, increment: torch.Tensor) -> torch.Tensor:
        stream, rows = take_rows(x, index)
        return add_rows(stream.cos(), index, gate, rows * increment)

    assert torch.autograd.gradcheck(function, (x, gate, increment))
