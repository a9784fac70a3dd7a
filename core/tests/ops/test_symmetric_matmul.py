"""The symmetric products against plain ones; the Triton kernel runs in its interpreter."""

import pytest
import torch

from nanozoo_core.ops import symmetric_matmul
from nanozoo_core.ops.symmetric_matmul import poly2, poly2_reference, syrk, syrk_reference
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted

SHAPES = [(1, 1, 1), (2, 31, 33), (1, 32, 16), (2, 65, 50), (1, 70, 100), (0, 8, 8)]
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cases():
    """Every input by name: shapes and dtypes, X^T X by strides, and symmetric matrices."""
    found = {}
    for dtype in DTYPES:
        for b, m, n in SHAPES:
            x = normal(b, m, n, dtype=dtype)
            found[f"syrk {b} {m} {n} {dtype}"] = (x, "syrk")
            found[f"syrk transposed {b} {m} {n} {dtype}"] = (x.mT, "syrk")
            found[f"poly2 {b} {m} {dtype}"] = (x + x.mT if m == n else syrk_reference(x), "poly2")
    return found


@compiled
def test_kernel_equals_reference_in_the_interpreter():
    run_interpreted(__file__, num_tests=len(cases()))


@interpreted
@pytest.mark.parametrize("case", cases())
def test_interpreted_kernel_equals_reference(case):
    x, kind = cases()[case]
    exact = x.double()
    expected = poly2_reference(exact, -2.5, 0.75) if kind == "poly2" else syrk_reference(exact)
    options = {"b": -2.5, "c": 0.75} if kind == "poly2" else {}
    found = symmetric_matmul.symmetric_matmul(x, block_m=32, block_k=16, **options)
    assert found.dtype == x.dtype
    assert torch.equal(found, found.mT)
    if x.numel():
        # Sums of products round relative to the norms of what is multiplied.
        scale = exact.flatten(1).norm(dim=1).square().max()
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[x.dtype]
        torch.testing.assert_close(found.double(), expected, atol=tolerance * scale, rtol=0)


def test_cpu_takes_torchs_product():
    x = normal(2, 600, 8)
    assert torch.equal(syrk(x), syrk_reference(x))
    gram = syrk(normal(2, 8, 20))
    assert torch.equal(poly2(gram, 2.0, 3.0), poly2_reference(gram, 2.0, 3.0))
    gram = gram.double()
    found = poly2(gram, 2.0, 3.0)
    torch.testing.assert_close(found, 2.0 * gram + 3.0 * gram @ gram, rtol=1e-10, atol=1e-10)


@compiled
def test_kernel_compiles_for_sm_90_tensor_cores():
    kinds = {"x_ptr": "*bf16", "out_ptr": "*bf16", "b": "fp32", "c": "fp32"}
    kinds |= dict.fromkeys(("num_rows", "num_columns", "batch_stride", "row_stride"), "i32")
    constants = {"column_stride": 1, "BLOCK_M": 128, "BLOCK_K": 64, "ADD_B": True, "UPCAST": False}
    kernel = symmetric_matmul._symmetric_kernel
    done = compile_for_sm_90(kernel, kinds, constants, num_warps=8)
    assert len(done.asm["cubin"]) > 0
    assert "wgmma" in done.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(3, 512, 2048), (2, 768, 768), (1, 1000, 1300)])
def test_kernel_equals_reference_on_the_gpu(shape):
    x = normal(*shape, dtype=torch.bfloat16).cuda()
    for y in (x, x.mT):
        found = syrk(y)
        scale = y.double().flatten(1).norm(dim=1).square().max()
        error = (found.double() - syrk_reference(y.double())).abs().max()
        assert error <= 1e-2 * scale
        assert torch.equal(found, found.mT)
    gram = syrk(x) / x.shape[-1]
    error = (poly2(gram, 2.0, 3.0).double() - poly2_reference(gram.double(), 2.0, 3.0)).abs().max()
    assert error <= 1e-2 * gram.double().flatten(1).norm(dim=1).square().max()
