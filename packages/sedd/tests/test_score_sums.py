"""The fused head of the raw scores: values and gradients against the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.ops import reduced_head
from nanozoo_core.randomness import seeded_generator
from nanozoo_sedd.kernels import score_sums as module
from nanozoo_sedd.kernels.score_sums import score_sums, score_sums_reference


def make_inputs(rows: int, vocab_size: int, dtype: torch.dtype, dim: int = 16) -> list[Tensor]:
    """Head inputs with logits of about unit size; a third of the tokens are their true ones."""
    generator = seeded_generator(rows, vocab_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    ids = torch.randint(vocab_size, (2, rows), generator=generator)
    ids[1, : rows // 3] = ids[0, : rows // 3]
    return [normal(rows, dim) / dim**0.5, normal(vocab_size, dim), normal(vocab_size), *ids]


def values_and_grads(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    outputs = function(*leaves, *inputs[3:])
    generator = seeded_generator(9)
    weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    total = sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))
    return [*outputs, *torch.autograd.grad(total, leaves)]


def assert_within(results: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of the largest entry."""
    for got, wanted in zip(results, expected, strict=True):
        error = (got.double() - wanted.double()).detach().abs().max()
        assert float(error) < tolerance * float(wanted.detach().double().abs().max())


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("chunk_rows", [7, 10_000])
def test_chunked_form_equals_the_reference(rows, chunk_rows, monkeypatch):
    monkeypatch.setattr(reduced_head, "CHUNK_BYTES", 4 * 37 * chunk_rows)
    inputs = make_inputs(rows, 37, torch.float64)
    results = values_and_grads(score_sums, inputs)
    expected = values_and_grads(score_sums_reference, inputs)
    for got, wanted in zip(results, expected, strict=True):
        assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_float32_stays_within_its_rounding():
    inputs = make_inputs(100, 300, torch.float32)
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    results = values_and_grads(score_sums, inputs)
    assert_within(results, values_and_grads(score_sums_reference, exact), 1e-5)


def test_non_contiguous_inputs():
    inputs = make_inputs(30, 40, torch.float64)
    inputs[0] = inputs[0].repeat(1, 2)[:, ::2]
    inputs[1] = inputs[1].T.contiguous().T
    expected = values_and_grads(score_sums_reference, inputs)
    for got, wanted in zip(values_and_grads(score_sums, inputs), expected, strict=True):
        assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_gradcheck():
    inputs = make_inputs(5, 7, torch.float64)
    leaves = [x.requires_grad_() for x in inputs[:3]]
    assert torch.autograd.gradcheck(lambda *a: score_sums(*a, *inputs[3:]), leaves)


def test_the_own_entry_is_never_read():
    """Its logit may be anything: values stay to the last bit, and it gets no gradient."""
    inputs = make_inputs(6, 11, torch.float64, dim=11)
    inputs[1] = torch.eye(11, dtype=torch.float64)  # so that x holds the logits
    results = values_and_grads(score_sums, inputs)
    changed = [inputs[0].scatter(1, inputs[3][:, None], 50.0), *inputs[1:]]
    for got, wanted in zip(values_and_grads(score_sums, changed), results, strict=True):
        if got.shape != inputs[1].shape:  # the weight's gradient is a sum over x itself
            assert torch.equal(got, wanted)
    assert float(results[3].gather(1, inputs[3][:, None]).abs().max()) == 0.0


def test_autocast_computes_in_bfloat16_and_returns_float32():
    """bfloat16 has 8 bits: logits of size 3 are off by 0.01, scores and gradients by a percent."""
    inputs = make_inputs(64, 50, torch.float32)
    expected = values_and_grads(score_sums_reference, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = values_and_grads(score_sums, inputs)
    assert all(got.dtype == torch.float32 for got in results)
    assert_within(results, expected, 2e-2)


INTERPRETED = """
import torch
from nanozoo_sedd.kernels import score_sums as m
m.BLOCK_V = 64  # several tiles per row
for rows, vocab in ((3, 200), (2, 64), (1, 37)):
    g = torch.Generator().manual_seed(rows)
    logits = 2 * torch.randn(rows, vocab, generator=g)
    own, true = torch.randint(vocab, (2, rows), generator=g)
    true[0] = own[0]
    outs = [torch.empty(3, rows) for _ in range(2)]
    m._forward_torch(logits.clone(), own, true, outs[0])
    m._forward_triton(logits, own, true, outs[1])
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    grads = torch.randn(3, rows, generator=g)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        pair = [logits.to(dtype), logits.to(dtype)]
        m._backward_torch(pair[0], own, true, *grads)
        m._backward_triton(pair[1], own, true, *grads)
        torch.testing.assert_close(pair[1], pair[0], rtol=tolerance, atol=tolerance)
"""


@pytest.mark.skipif(module.triton is None, reason="Triton is not installed")
def test_triton_kernels_equal_the_torch_ones_in_the_interpreter():
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nanozoo_sedd.kernels import score_sums as m
for kernel in (m._forward_kernel, m._backward_kernel):
    for logits in ("*fp32", "*bf16"):
        names = kernel.arg_names
        types = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in names}
        types |= {"logits_ptr": logits, "own_ptr": "*i64", "true_ptr": "*i64", "BLOCK": "constexpr"}
        source = ASTSource(kernel, types, constexprs={"BLOCK": m.BLOCK_V})
        assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
"""


@pytest.mark.slow
@pytest.mark.skipif(module.triton is None, reason="Triton is not installed")
def test_triton_kernels_compile_for_sm_90():
    result = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("rows", [1, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_equals_the_reference_on_a_gpu(rows, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    inputs = [x.cuda() for x in make_inputs(rows, 5003, dtype, dim=64)]
    expected = values_and_grads(score_sums_reference, inputs)
    assert_within(values_and_grads(score_sums, inputs), expected, tolerance)


def test_module_needs_torch_and_triton_alone():
    allowed = {"__future__", "collections", "dataclasses", "typing", "torch", "triton"}
    for path in (module.__file__, reduced_head.__file__):
        lines = [line.split() for line in Path(path).read_text().splitlines()]
        found = {words[1] for words in lines if words[:1] in (["import"], ["from"])}
        found -= {"nanozoo_core.ops.reduced_head"}  # which is held to the same
        assert {name.partition(".")[0] for name in found} <= allowed
