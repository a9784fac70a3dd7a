"""Triton kernels of selected attention against masked attention; they run in the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanozoo_core.testing.kernels import compile_launches, compiled, interpreted, run_interpreted
from nanozoo_core.testing.laws import assert_close_in_size
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.attention import masked_attention, selected_attention
from nanozoo_nsa.selected.choice import all_blocks, choose

# Sequences, key heads, positions, query heads of each, head width, and the blocks.
CASES = {
    "one-position": (1, 1, 1, 2, 16, Grid(8, 4, 16, 3, 1, 1)),
    "three-heads": (1, 2, 21, 3, 16, Grid(8, 4, 16, 3, 1, 1)),
    "one-head": (2, 1, 17, 1, 16, Grid(8, 8, 16, 2, 0, 1)),
    "block-32": (1, 1, 34, 2, 32, Grid(8, 4, 32, 2, 1, 1)),
    "six-heads-that-differ": (1, 1, 101, 6, 16, Grid(8, 4, 16, 3, 1, 1)),
    "many-heads": (1, 1, 5, 17, 16, Grid(16, 16, 16, 3, 1, 2)),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make_inputs(case: tuple, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    batch, heads, length, group, width, grid = case
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q = normal(batch, heads, length, group, width)
    k, v = (normal(batch, heads, length, width) for _ in range(2))
    scores = torch.rand(batch, heads, length, grid.num_blocks(length), generator=generator)
    return q, k, v, choose(scores, torch.arange(length), grid)


def triton_form(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
    from nanozoo_nsa.selected.attention_triton import selected_attention_triton

    positions = torch.arange(q.shape[2], device=q.device)
    return selected_attention_triton(q, k, v, all_blocks(chosen, positions, grid), grid.block)


def value_and_gradients(form: Callable[..., Tensor], inputs: tuple, grid: Grid) -> list[Tensor]:
    *tensors, chosen = inputs
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = form(*leaves, chosen, grid)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


@compiled
def test_kernels_agree_with_the_mask_in_a_child_process() -> None:
    run_interpreted(__file__, num_tests=len(CASES) + 2)


@interpreted
@cases
def test_interpreted_kernels_equal_the_mask(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanozoo_nsa.selected import attention_triton as selected

    monkeypatch.setattr(selected, "SEGMENT", 16)  # the first block's queries fill several
    inputs, grid = make_inputs(case), case[-1]
    expected = value_and_gradients(masked_attention, inputs, grid)
    assert_close_in_size(value_and_gradients(triton_form, inputs, grid), expected, 1e-5)


@interpreted
def test_interpreted_kernels_take_bfloat16() -> None:
    case = CASES["three-heads"]
    low = make_inputs(case, torch.bfloat16)
    exact = (*(x.float() for x in low[:3]), low[3])
    expected = value_and_gradients(masked_attention, exact, case[-1])
    # 8 significant bits: results, which the interpreter cuts off, are wrong by 2^-8 at most.
    assert_close_in_size(value_and_gradients(triton_form, low, case[-1]), expected, 5e-3)


@interpreted
def test_interpreted_kernels_take_strided_inputs() -> None:
    case = CASES["three-heads"]
    inputs, grid = make_inputs(case), case[-1]
    strided = (*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:3]), inputs[3])
    assert not strided[0].is_contiguous()
    assert torch.equal(triton_form(*strided, grid), triton_form(*inputs, grid))


@compiled
@pytest.mark.parametrize("length", [1, pytest.param(1000, marks=pytest.mark.slow)])
def test_kernels_compile_for_sm_90_without_spills(length: int) -> None:
    case = (1, 1, length, 6, 64, Grid(32, 16, 64, 8, 1, 2))
    inputs = make_inputs(case, torch.bfloat16)
    found = compile_launches(lambda: value_and_gradients(triton_form, inputs, case[-1]))
    assert set(found) == {"_attend", "_query_gradients", "_block_gradients", "_add_segments"}
    assert not any(used.spill_bytes for used in found.values()), found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_kernels_equal_the_mask(length: int, dtype: torch.dtype) -> None:
    case = (2, 2, length, 6, 64, Grid(32, 16, 64, 8, 1, 2))
    inputs = tuple(x.cuda() for x in make_inputs(case, dtype))
    exact = (*(x.float() for x in inputs[:3]), inputs[3])
    expected = value_and_gradients(masked_attention, exact, case[-1])
    found = value_and_gradients(
        lambda *given: selected_attention(*given, "triton"), inputs, case[-1]
    )
    assert_close_in_size(found, expected, 5e-3 if dtype == torch.bfloat16 else 1e-5)
