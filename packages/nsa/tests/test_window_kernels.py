"""Triton kernels of window attention against all scores; they run in the interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanozoo_core.testing.kernels import compile_launches, compiled, interpreted, run_interpreted
from nanozoo_core.testing.laws import assert_close_in_size
from nanozoo_nsa.config import Grid
from nanozoo_nsa.window.attention import banded_attention, window_attention

# Sequences, key heads, positions, query heads of each, head width, and tokens of the window.
CASES = {
    "one-position": (1, 1, 1, 2, 16, 5),
    "three-heads": (1, 2, 45, 3, 16, 7),
    "one-head": (2, 1, 70, 1, 16, 33),
    "own-token": (1, 1, 20, 2, 32, 1),
    "two-tokens": (1, 1, 40, 1, 16, 2),  # the last query that sees a tile's keys begins a tile
    "all-tokens": (1, 1, 37, 2, 16, 50),
    "many-heads": (1, 1, 9, 40, 16, 4),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make_inputs(case: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, heads, length, group, width, _ = case
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, heads, length, group, width), *[(batch, heads, length, width)] * 2
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def all_scores(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """As it is written, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = torch.einsum("bhtgk,bhsk->bhtgs", q, k) / math.sqrt(q.shape[-1])
    steps = torch.arange(q.shape[2], device=q.device)
    behind = steps[:, None, None] - steps  # (T, 1, S)
    hidden = (behind < 0) | (behind >= size)
    return torch.einsum("bhtgs,bhsk->bhtgk", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def by_kernels(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    return window_attention(q, k, v, size, Grid(32, 16, 64, 8, 1, 2), "triton")


def value_and_gradients(
    form: Callable[..., Tensor], inputs: list[Tensor], size: int
) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = form(*leaves, size)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [x.float() for x in (y.detach(), *torch.autograd.grad(y, leaves, cotangent))]


@cases
def test_banded_form_is_attention_over_the_window(case: tuple[int, ...]) -> None:
    inputs = make_inputs(case)
    expected = value_and_gradients(all_scores, inputs, case[-1])
    assert_close_in_size(value_and_gradients(banded_attention, inputs, case[-1]), expected, 1e-5)


@compiled
def test_kernels_agree_with_all_scores_in_a_child_process() -> None:
    run_interpreted(__file__, num_tests=len(CASES) + 2)


@interpreted
@cases
def test_interpreted_kernels_equal_all_scores(case: tuple[int, ...]) -> None:
    inputs = make_inputs(case)
    expected = value_and_gradients(all_scores, inputs, case[-1])
    assert_close_in_size(value_and_gradients(by_kernels, inputs, case[-1]), expected, 1e-5)


@interpreted
def test_interpreted_kernels_take_bfloat16() -> None:
    case = CASES["three-heads"]
    low = make_inputs(case, torch.bfloat16)
    expected = value_and_gradients(all_scores, low, case[-1])
    # 8 significant bits: results, which the interpreter cuts off, are wrong by 2^-8 at most.
    assert_close_in_size(value_and_gradients(by_kernels, low, case[-1]), expected, 5e-3)


@interpreted
def test_interpreted_kernels_take_strided_inputs() -> None:
    case = CASES["three-heads"]
    inputs = make_inputs(case)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    assert not strided[0].is_contiguous()
    assert torch.equal(by_kernels(*strided, case[-1]), by_kernels(*inputs, case[-1]))


@compiled
@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (1, torch.bfloat16),
        pytest.param(100, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(100, torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernels_compile_without_spills(length: int, dtype: torch.dtype) -> None:
    inputs = make_inputs((1, 1, length, 6, 64, 40), dtype)
    found = compile_launches(lambda: value_and_gradients(by_kernels, inputs, 40))
    assert set(found) == {"_attend", "_query_gradients", "_key_gradients"}
    assert not any(used.spill_bytes for used in found.values()), found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("group", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_kernels_equal_all_scores(length: int, group: int, dtype: torch.dtype) -> None:
    inputs = [x.cuda() for x in make_inputs((2, 2, length, group, 64, 256), dtype)]
    expected = value_and_gradients(all_scores, inputs, 256)
    found = value_and_gradients(by_kernels, inputs, 256)
    assert_close_in_size(found, expected, 5e-3 if dtype == torch.bfloat16 else 1e-5)
