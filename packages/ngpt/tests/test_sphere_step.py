"""The step on the sphere against its definition; the Triton kernels run in a child, interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanozoo_ngpt.kernels.sphere_step import sphere_step, sphere_step_reference, triton, unit

NAMES = ("o", "x", "y", "a")


def example(num_rows, dim, dtype=torch.float32, seed=0):
    """A stream of unit rows, proposals of any length, and shares on both sides of 1/2."""
    generator = torch.Generator().manual_seed(seed)
    x = unit(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64))
    y = 3 * torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    a = torch.rand(dim, generator=generator, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.to(d).requires_grad_() for t, d in ((x, dtype), (y, dtype), (a, wide))]


def results(function, inputs, **options):
    """The output and the gradients of a fixed random functional of it."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    o = function(*inputs, **options)
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((o * weight.to(o.dtype)).sum(), inputs)
    return [o.detach(), *gradients]


def assert_same(found, expected, tolerance):
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.shape == b.shape
        if b.numel():
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)
            assert error <= tolerance, f"{name}: {error}"


def test_by_hand():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    half = sphere_step(x, y, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(half, torch.full((1, 2), 0.5**0.5))
    assert torch.equal(sphere_step(x, y, torch.zeros(2)), x)
    assert torch.equal(sphere_step(x, y, torch.ones(2)), torch.tensor([[0.0, 1.0]]))


def test_the_reference_and_the_backward_by_hand_pass_gradcheck():
    inputs = example(5, 7, torch.float64)
    assert torch.autograd.gradcheck(sphere_step_reference, inputs)
    assert torch.autograd.gradcheck(sphere_step, inputs)


@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 65, 1000])
def test_by_hand_equals_the_reference(num_rows):
    inputs = example(num_rows, 24)
    assert_same(results(sphere_step, inputs), results(sphere_step_reference, inputs), 1e-5)


def test_half_precision_is_computed_in_float32():
    """What remains is the rounding of o and of the gradients: 2^-9 of the largest."""
    low = example(40, 16, torch.bfloat16)
    exact = results(sphere_step_reference, [t.float() for t in low])
    found = results(sphere_step, low)
    assert [t.dtype for t in found] == [torch.bfloat16] * 3 + [torch.float32]
    assert_same(found, exact, 1e-2)


def test_leading_axes_and_strides_do_not_matter():
    x, y, a = example(24, 8)
    expected = sphere_step(x, y, a)
    wide = torch.cat([y, y], dim=-1)[:, :8]
    assert torch.equal(sphere_step(x.view(2, 12, 8), wide.view(2, 12, 8), a).view(24, 8), expected)


# -- Triton -------------------------------------------------------------------------------------

needs_triton = pytest.mark.skipif(triton is None, reason="no Triton on this platform")


@needs_triton
@pytest.mark.parametrize("function", ["check_interpreted_kernels", "check_kernels_compile"])
def test_kernels_in_a_child_process(function):
    here = Path(__file__)
    code = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as tests; "
    code += f"tests.{function}()"
    interpret = "1" if "interpreted" in function else "0"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check_interpreted_kernels():
    from nanozoo_ngpt.kernels import sphere_step as module

    module.TILE, module.NUM_PARTIAL = 64, 4  # several tiles in a program, several programs
    for num_rows, dim in ((0, 8), (1, 3), (33, 16), (65, 24)):
        inputs = example(num_rows, dim)
        found = results(sphere_step, inputs, backend="triton")
        assert_same(found, results(sphere_step_reference, inputs), 1e-5)
    low = example(40, 16, torch.bfloat16)
    exact = results(sphere_step_reference, [t.float() for t in low])
    assert_same(results(sphere_step, low, backend="triton"), exact, 1e-2)


def check_kernels_compile():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nanozoo_ngpt.kernels import sphere_step as module

    low, high, count = "*bf16", "*fp32", "i32"
    forward = [low, low, high, low, high, high, count, count, "fp32"]
    backward = [low, low, low, high, low, high, high, low, low, high, count, count, count]
    for kernel, types in ((module._forward_kernel, forward), (module._backward_kernel, backward)):
        blocks = {"BLOCK_N": 4, "BLOCK_D": 1024}
        signature = dict(zip(kernel.arg_names, types + ["constexpr"] * 2, strict=True))
        source = ASTSource(fn=kernel, signature=signature, constexprs=blocks)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "dim"), [(1, 64), (1000, 768), (4096, 1000)])
def test_triton_equals_the_reference(num_rows, dim, dtype):
    inputs = [t.detach().cuda() for t in example(num_rows, dim, dtype)]
    exact = results(lambda *t: sphere_step_reference(*t), [t.float().cpu() for t in inputs])
    found = [t.cpu() for t in results(lambda *t: sphere_step(*t).cpu(), inputs)]
    assert_same(found, exact, 1e-5 * num_rows**0.5 if dtype == torch.float32 else 1e-2)
