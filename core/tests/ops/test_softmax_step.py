"""The Triton twin of the step between the products of a head and its loss."""

import head_cases as cases
import pytest
import torch

from nanozoo_core.ops import softmax_step
from nanozoo_core.ops.backend import HAS_TRITON
from nanozoo_core.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernel_equals_reference_in_the_interpreter() -> None:
    run_interpreted(__file__, num_tests=14)


@interpreted
@pytest.mark.parametrize(
    ("num_tokens", "dim", "vocab_size", "softcap", "reduction", "normalised"),
    [
        (1, 16, 33, None, "sum", True),
        (63, 16, 130, 3.0, "none", True),
        (65, 48, 33, 3.0, "mean", True),
        (63, 4, 130, None, "none", False),
        (65, 48, 33, 3.0, "mean", False),
    ],
)
def test_interpreted_kernel_equals_reference(
    num_tokens: int,
    dim: int,
    vocab_size: int,
    softcap: float | None,
    reduction: str,
    normalised: bool,
) -> None:
    args = cases.make(
        num_tokens, dim, vocab_size, with_bias=True, with_token_weight=True, dtype=torch.float32
    )
    options = {"softcap": softcap, "reduction": reduction, "normalised": normalised}
    expected = cases.values_and_gradients(linear_cross_entropy_reference, args, **options)
    found = cases.values_and_gradients(
        linear_cross_entropy, args, backend="triton", chunk_size=40, **options
    )
    cases.assert_same(found, expected, 1e-5)


@interpreted
def test_interpreted_kernel_sweeps_a_row_in_several_blocks() -> None:
    args = cases.make(3, 16, 4096 * 2 + 5, dtype=torch.float32)
    args["x"] = (20 * args["x"].detach()).requires_grad_()
    expected = cases.values_and_gradients(linear_cross_entropy_reference, args)
    found = cases.values_and_gradients(linear_cross_entropy, args, backend="triton")
    cases.assert_same(found, expected, 1e-5)


@interpreted
@pytest.mark.parametrize(("dtype", "places"), [(torch.bfloat16, 9), (torch.float16, 12)])
def test_interpreted_kernel_takes_half_precision(dtype: torch.dtype, places: int) -> None:
    args = cases.make(65, 16, 130, with_bias=True, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        expected = cases.values_and_gradients(linear_cross_entropy, args, backend="torch")
        found = cases.values_and_gradients(linear_cross_entropy, args, backend="triton")
    # Both round the gradient of a logit, the scaled feature and the product to 8 or 11 bits, but
    # one may do so before and one after the division by the row's norm: six roundings.
    cases.assert_same(found, expected, 6 * 2**-places)


@interpreted
@pytest.mark.parametrize("shift", [-90.0, 90.0])
def test_interpreted_kernel_holds_an_extreme_mass(shift: float) -> None:
    args = cases.make(3, 16, 130, with_bias=True, dtype=torch.float32)
    args["bias"] = (args["bias"].detach() + shift).requires_grad_()
    options = {"normalised": False, "reduction": "sum"}
    expected = cases.values_and_gradients(linear_cross_entropy, args, backend="torch", **options)
    found = cases.values_and_gradients(linear_cross_entropy, args, backend="triton", **options)
    # e^60 of an argument that float32 holds to 60 * 2^-24 is off by as much.
    cases.assert_same(found, expected, 2e-5)


@interpreted
@pytest.mark.parametrize("target", [-1, 33])
def test_interpreted_kernel_marks_an_illegal_target(target: int) -> None:
    losses, _ = softmax_step.softmax_step_triton(
        torch.zeros(2, 64)[:, :33],
        torch.tensor([[0], [target]]),
        None,
        softcap=None,
        normalised=True,
        with_gradient=True,
    )
    assert losses[:, 0].isfinite().tolist() == [True, False]


@interpreted
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_interpreted_kernel_takes_several_targets(softcap: float | None) -> None:
    args = cases.several(65, 16, 130, 3, dtype=torch.float32)
    expected = cases.several_reference(args, softcap)
    cases.assert_same(
        cases.several_found(args, softcap, backend="triton", chunk_size=40), expected, 1e-5
    )


@compiled
@pytest.mark.parametrize(
    ("dtype", "normalised", "num_targets"),
    [
        ("bf16", True, 1),
        ("fp32", True, 1),
        ("bf16", False, 1),
        ("bf16", True, 4),
        ("fp16", True, 1),
    ],
)
def test_kernel_compiles_for_sm_90(dtype: str, normalised: bool, num_targets: int) -> None:
    kinds = {"logits": f"*{dtype}", "targets": "*i64", "parts": "*fp32", "losses": "*fp32"}
    kinds |= {"vocab_size": "i32", "row_stride": "i32", "softcap": "fp32", "log_size": "fp32"}
    constants = {"MAX_LOG_MASS": 60.0, "HAS_SOFTCAP": True, "NORMALISED": normalised}
    constants |= {"WITH_GRADIENT": True, "NUM_TARGETS": num_targets, "BLOCK": 4096}
    constants["GRADIENT_SCALE"] = 64.0 if dtype == "fp16" else 1.0
    done = compile_for_sm_90(softmax_step.softmax_step_kernel, kinds, constants, num_warps=8)
    assert "cubin" in done.asm
    assert done.metadata.num_warps == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("num_tokens", "vocab_size"), [(1, 33), (1000, 50257)])
def test_cuda_equals_reference(
    num_tokens: int, vocab_size: int, reduction: str, normalised: bool
) -> None:
    args = cases.make(
        num_tokens, 64, vocab_size, with_bias=True, with_token_weight=True, dtype=torch.float32
    )
    args = {
        name: arg.detach().cuda().requires_grad_(arg.requires_grad) for name, arg in args.items()
    }
    options = {"softcap": 15.0, "reduction": reduction, "normalised": normalised}
    expected = cases.values_and_gradients(linear_cross_entropy_reference, args, **options)
    found = cases.values_and_gradients(linear_cross_entropy, args, chunk_size=300, **options)
    cases.assert_same(found, expected, 1e-5)
