"""Dechunking against its definition; the Triton kernels run in a child process, interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted
from nanozoo_hnet.kernels.dechunk import dechunk, dechunk_reference, smooth

NAMES = ("values", "probs", "confidence", "residual")


def example(
    length: int = 40,
    dim: int = 6,
    batch: int = 3,
    *,
    dtype: torch.dtype = torch.float64,
    low: float = 0.5,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Ragged rows, padded as the model pads them, with P in (low, 1)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    boundaries = draw(batch, length) < 0.4
    boundaries[:, 0] = True
    num_chunks = int(boundaries.sum(1).max())
    probs = low + (1 - low) * draw(batch, num_chunks)
    inputs = {
        "values": draw(batch, num_chunks, dim) - 0.5,
        "probs": probs,
        "index": boundaries.cumsum(1) - 1,
        "confidence": draw(batch, length),
        "residual": draw(batch, length, dim) - 0.5,
    }
    return {k: v if k == "index" else v.to(dtype).requires_grad_() for k, v in inputs.items()}


def results(inputs: dict[str, Tensor], function=dechunk, **kwargs) -> list[Tensor]:
    """The output and the gradients of a fixed random functional of it."""
    y = function(**inputs, **kwargs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weight.to(y)).sum().backward()
    grads = [inputs[name].grad for name in NAMES]
    for name in NAMES:
        inputs[name].grad = None
    return [y.detach(), *grads]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("y", *NAMES), found, expected, strict=True):
        assert a.shape == b.shape
        error = (a - b).abs().max() / b.abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error}"


def test_two_chunks_by_hand() -> None:
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0])
    probs = torch.tensor([[0.9999, 0.75]])
    smoothed = smooth(torch.stack([a, b])[None], probs)
    expected = torch.stack([0.9999 * a, 0.75 * b + 0.25 * 0.9999 * a])
    torch.testing.assert_close(smoothed[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_equals_the_definition(length: int) -> None:
    inputs = example(length, low=0.0)
    expected = results(inputs, dechunk_reference)
    assert_same(results(inputs), expected, 1e-10)


@pytest.mark.parametrize("length", [1, 65, 300])
def test_float32_is_exact_to_rounding(length: int) -> None:
    inputs = example(length, dtype=torch.float32)
    assert_same(results(inputs), results(inputs, dechunk_reference), 1e-5)


def test_starts_cut_the_past() -> None:
    inputs = example(120)
    starts = torch.zeros_like(inputs["probs"], dtype=torch.bool)
    starts[:, 7] = starts[1, 20] = True
    expected = results(inputs, dechunk_reference, starts=starts)
    assert_same(results(inputs, starts=starts), expected, 1e-10)


def test_analytic_backward_passes_gradcheck() -> None:
    inputs = example(9, dim=2, batch=2)

    def function(values: Tensor, probs: Tensor, residual: Tensor) -> Tensor:
        return dechunk(values, probs, inputs["index"], inputs["confidence"].detach(), residual)

    arguments = (inputs["values"], inputs["probs"], inputs["residual"])
    assert torch.autograd.gradcheck(function, arguments, atol=1e-6)


def test_confidence_passes_only_a_gradient() -> None:
    inputs = example(50)
    y = dechunk(**inputs)
    other = dict(inputs, confidence=inputs["confidence"] * 3)
    assert torch.equal(y, dechunk(**other))
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    (y * weight).sum().backward()
    spread = (y - inputs["residual"]).detach()
    torch.testing.assert_close(inputs["confidence"].grad, (weight * spread).sum(-1))


def test_padding_chunks_get_no_gradient() -> None:
    inputs = example(60)
    used = inputs["index"].max(1).values
    grads = dict(zip(("y", *NAMES), results(inputs), strict=True))
    for row, last in enumerate(used.tolist()):
        assert grads["values"][row, last + 1 :].abs().sum() == 0
        assert grads["probs"][row, last + 1 :].abs().sum() == 0


def test_bf16_values_are_smoothed_in_float32() -> None:
    inputs = example(80, dtype=torch.float32)
    low = dict(inputs, values=inputs["values"].detach().bfloat16())
    high = dict(inputs, values=low["values"].float())
    assert torch.equal(dechunk(**low), dechunk(**high))
    assert dechunk(**low).dtype == torch.float32


def test_non_contiguous_values() -> None:
    inputs = example(30)
    wide = torch.cat([inputs["values"]] * 2, dim=-1)
    sliced = dict(inputs, values=wide[..., : inputs["values"].shape[-1]])
    assert torch.equal(dechunk(**sliced), dechunk(**inputs))


# -- Triton -------------------------------------------------------------------------------------


@compiled
def test_kernels_agree_with_the_definition_in_a_child_process() -> None:
    run_interpreted(__file__, num_tests=4)


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels on a CPU, in several tiles."""
    from nanozoo_hnet.kernels import dechunk as module

    monkeypatch.setattr(module, "_on_gpu", lambda values: values.dtype != torch.float64)
    monkeypatch.setattr(module, "BLOCK_D", 8)
    monkeypatch.setattr(module, "BLOCK_L", 16)


@interpreted
@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize(("length", "dim"), [(1, 3), (33, 9), (60, 11)])
def test_interpreted_kernels_equal_the_definition(length: int, dim: int) -> None:
    inputs = example(length, dim, batch=2, dtype=torch.float32, low=0.0)
    starts = torch.zeros_like(inputs["probs"], dtype=torch.bool)
    starts[0, starts.shape[1] // 2] = True
    expected = results(inputs, dechunk_reference, starts=starts)
    assert_same(results(inputs, starts=starts), expected, 1e-5)


@interpreted
@pytest.mark.usefixtures("with_kernels")
def test_interpreted_kernels_take_bfloat16() -> None:
    low = example(20, 8, batch=2, dtype=torch.float32)
    values = low["values"].detach().bfloat16()
    expected = dechunk_reference(**dict(low, values=values.float()))
    torch.testing.assert_close(dechunk(**dict(low, values=values)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("kernel", ["_spread_kernel", "_chunk_sums_kernel"])
def test_kernel_compiles_for_sm_90(kernel: str) -> None:
    from nanozoo_hnet.kernels import dechunk as module

    floats, ints = "*fp32", "i32"
    types, constants = {
        "_spread_kernel": (
            [floats, "*i64", floats, floats] + [ints] * 3,
            {"BLOCK_L": 32, "BLOCK_D": 128},
        ),
        "_chunk_sums_kernel": (
            [floats, floats, "*i64", floats, floats] + [ints] * 3,
            {"BLOCK_D": 512},
        ),
    }[kernel]
    function = getattr(module, kernel)
    names = [p.name for p in function.params if not p.is_constexpr]
    kinds = dict(zip(names, types, strict=True))
    compile_for_sm_90(function, kinds, constants, num_warps=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("length", [1, 64, 65, 1000])
def test_triton_kernels_on_the_gpu(length: int) -> None:
    inputs = example(length, 200, dtype=torch.float32)
    expected = results(inputs, dechunk_reference)
    moved = {k: v.detach().cuda() for k, v in inputs.items()}
    for name in NAMES:
        moved[name].requires_grad_()
    assert_same([x.cpu() for x in results(moved)], expected, 1e-5)
