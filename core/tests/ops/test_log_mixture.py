"""The fused head of the uniform process: values and gradients against the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.ops import log_mixture as module
from nanozoo_core.ops import reduced_head
from nanozoo_core.ops.log_mixture import log_mixture, log_mixture_reference
from nanozoo_core.randomness import seeded_generator


def make_inputs(rows: int, vocab_size: int, dtype: torch.dtype, dim: int = 16) -> list[Tensor]:
    generator = seeded_generator(rows, vocab_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    ids = torch.randint(vocab_size, (2, rows), generator=generator)
    ratio = torch.rand(rows, generator=generator, dtype=torch.float64) * 3 * vocab_size
    if rows:
        ratio[0] = 0  # the first timestep
    ids[1, : rows // 3] = ids[0, : rows // 3]
    ratio = ratio.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return [normal(rows, dim), normal(vocab_size, dim), normal(vocab_size), *ids, ratio]


def values_and_grads(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    outputs = function(*leaves, *inputs[3:])
    generator = seeded_generator(9)
    weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    total = sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))
    return [*outputs, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("chunk_rows", [7, 10_000])
def test_chunked_form_equals_the_reference(rows, chunk_rows, monkeypatch):
    monkeypatch.setattr(reduced_head, "CHUNK_BYTES", 4 * 37 * chunk_rows)
    inputs = make_inputs(rows, 37, torch.float64)
    results = values_and_grads(log_mixture, inputs)
    expected = values_and_grads(log_mixture_reference, inputs)
    for got, wanted in zip(results, expected, strict=True):
        assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_float32_stays_within_its_rounding():
    inputs = make_inputs(100, 300, torch.float32)
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    results = values_and_grads(log_mixture, inputs)
    expected = values_and_grads(log_mixture_reference, exact)
    for got, wanted in zip(results, expected, strict=True):
        scale = float(wanted.detach().abs().max())
        assert float((got.double() - wanted).detach().abs().max()) < 1e-5 * scale


def test_non_contiguous_inputs():
    inputs = make_inputs(30, 40, torch.float64)
    inputs[0] = inputs[0].repeat(1, 2)[:, ::2]
    inputs[1] = inputs[1].T.contiguous().T
    expected = values_and_grads(log_mixture_reference, inputs)
    for got, wanted in zip(values_and_grads(log_mixture, inputs), expected, strict=True):
        assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_gradcheck():
    inputs = make_inputs(5, 7, torch.float64)
    leaves = [x.requires_grad_() for x in inputs[:3]]
    assert torch.autograd.gradcheck(lambda *a: log_mixture(*a, *inputs[3:]), leaves)


def test_autocast_computes_in_bfloat16_and_returns_float32():
    """bfloat16 has 8 bits: logits of size 10 are off by 0.02 or so, gradients by 1 percent."""
    inputs = make_inputs(64, 50, torch.float32)
    inputs[0], inputs[1] = inputs[0] / 4, inputs[1] / 4
    expected = values_and_grads(log_mixture_reference, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = values_and_grads(log_mixture, inputs)
    for got, wanted in zip(results, expected, strict=True):
        assert got.dtype == torch.float32
        assert float((got - wanted).detach().abs().max()) < 2e-2 * float(
            wanted.detach().abs().max()
        )


INTERPRETED = """
import torch
from nanozoo_core.ops import log_mixture as m
m.BLOCK_V = 64  # several tiles per row
for rows, vocab in ((3, 200), (2, 64), (1, 37)):
    g = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, vocab, generator=g)
    own, true = torch.randint(vocab, (2, rows), generator=g)
    true[0] = own[0]
    ratio = torch.rand(rows, generator=g) * vocab
    ratio[-1] = 0
    outs = [torch.empty(5, rows) for _ in range(2)]
    m._forward_torch(logits.clone(), own, true, ratio, outs[0])
    m._forward_triton(logits, own, true, ratio, outs[1])
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    grads = torch.randn(3, rows, generator=g)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        pair = [logits.to(dtype), logits.to(dtype)]
        m._backward_torch(pair[0], own, true, ratio, outs[0][3], outs[0][4], *grads)
        m._backward_triton(pair[1], own, true, ratio, outs[0][3], outs[0][4], *grads)
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
from nanozoo_core.ops import log_mixture as m
for kernel, pointers in ((m._forward_kernel, 5), (m._backward_kernel, 9)):
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
    inputs[0], inputs[1] = inputs[0] / 8, inputs[1] / 8
    expected = values_and_grads(log_mixture_reference, inputs)
    for got, wanted in zip(values_and_grads(log_mixture, inputs), expected, strict=True):
        error = (got.double() - wanted.double()).abs().max()
        assert float(error) < tolerance * float(wanted.double().abs().max())


def test_module_needs_torch_and_triton_alone():
    allowed = {"__future__", "collections", "dataclasses", "typing", "torch", "triton"}
    for path in (module.__file__, reduced_head.__file__):
        lines = [line.split() for line in Path(path).read_text().splitlines()]
        found = {words[1] for words in lines if words[:1] in (["import"], ["from"])}
        found -= {"nanozoo_core.ops.reduced_head"}  # which is held to the same
        assert {name.partition(".")[0] for name in found} <= allowed
