"""Attention within patches; the Triton kernels against the plain form, in the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted
from nanozoo_core.testing.laws import assert_close_in_size
from nanozoo_megabyte.model import Megabyte
from nanozoo_megabyte.patch_attention import patch_attention, patch_attention_reference

# Patches, heads, bytes of a patch, head width.
CASES = {
    "one-byte": (1, 2, 1, 16),
    "patches-of-one": (130, 1, 1, 8),
    "patches-of-three": (43, 2, 3, 24),
    "patches-of-four": (33, 4, 4, 24),
    "patches-of-eight": (9, 2, 8, 64),
    "patches-of-sixteen": (5, 3, 16, 32),
    "patches-of-32": (3, 1, 32, 128),
    "no-patch": (0, 2, 4, 16),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

SMALL = {
    "vocab_size": 20,
    "seq_len": 36,
    "patch_size": 4,
    "global_byte_dim": 8,
    "num_global_layers": 1,
    "num_global_heads": 2,
    "local_dim": 36,
    "num_local_layers": 2,
    "num_local_heads": 2,
}


def kernels(*inputs: Tensor) -> Tensor:
    return patch_attention(*inputs, backend="triton")


def make_inputs(case: tuple, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(case, generator=generator).to(dtype) for _ in range(3)]


def value_and_gradients(form: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = form(*leaves)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


@pytest.mark.parametrize("case", [(5, 2, 1, 4), (5, 2, 4, 6), (2, 3, 16, 8)])
def test_the_reference_equals_torchs_attention(case: tuple) -> None:
    inputs = make_inputs(case, torch.float64)
    found = value_and_gradients(patch_attention_reference, inputs)
    torch.testing.assert_close(
        found, value_and_gradients(patch_attention, inputs), rtol=1e-10, atol=1e-10
    )


def test_gradients_of_the_reference_agree_with_finite_differences() -> None:
    leaves = [x.requires_grad_() for x in make_inputs((2, 1, 3, 2), torch.float64)]
    assert torch.autograd.gradcheck(patch_attention_reference, leaves)


@compiled
def test_kernels_on_a_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend=triton needs CUDA tensors"):
        kernels(*make_inputs(CASES["patches-of-four"]))


@compiled
def test_kernels_agree_with_the_reference_in_a_child_process() -> None:
    run_interpreted(__file__, num_tests=len(CASES) + 6)


@interpreted
@cases
def test_interpreted_kernels_equal_the_reference(case: tuple) -> None:
    inputs = make_inputs(case)
    expected = value_and_gradients(patch_attention_reference, inputs)
    assert_close_in_size(value_and_gradients(kernels, inputs), expected, 1e-5)


@interpreted
def test_interpreted_kernels_take_bfloat16() -> None:
    inputs = make_inputs(CASES["patches-of-eight"], torch.bfloat16)
    expected = value_and_gradients(patch_attention_reference, [x.float() for x in inputs])
    found = value_and_gradients(kernels, inputs)
    assert found[0].dtype == torch.bfloat16
    # 8 significant bits: results, which the interpreter cuts off, are wrong by 2^-8 at most.
    assert_close_in_size(found, expected, 5e-3)


@interpreted
@pytest.mark.parametrize("turned", [False, True], ids=["parts-of-one", "copies-among-them"])
def test_interpreted_kernels_take_parts_of_one_projection(turned: bool) -> None:
    qkv = torch.randn(11, 4, 3 * 2 * 24, generator=torch.Generator().manual_seed(0))

    def split(form: Callable[..., Tensor]) -> list[Tensor]:
        leaf = qkv.clone().requires_grad_()
        q, k, v = (x.unflatten(-1, (2, 24)).transpose(1, 2) for x in leaf.chunk(3, dim=-1))
        if turned:  # as rotary positions leave them
            q, k = q.contiguous(), k.contiguous()
        y = form(q, k, v)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]

    torch.testing.assert_close(
        split(kernels), split(patch_attention_reference), rtol=1e-4, atol=1e-5
    )


@interpreted
@pytest.mark.parametrize(
    "settings",
    [{}, {"pos_emb": "rope"}, {"patch_size": 3}],
    ids=["paper", "rope", "patches-of-three"],
)
def test_interpreted_model_equals_that_of_torchs_attention(settings: dict[str, object]) -> None:
    results = []
    tokens = torch.randint(20, (2, 31), generator=torch.Generator().manual_seed(0))
    for backend in ("triton", "torch"):
        torch.manual_seed(0)
        model = Megabyte(model_config("megabyte", SMALL | settings | {"local_backend": backend}))
        logits = model(tokens)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("size", "width"), [(8, 64), (3, 24), (32, 128)])
@pytest.mark.parametrize("kernel", ["_attend", "_gradients"])
def test_kernel_compiles_for_sm_90(kernel: str, size: int, width: int, dtype: str) -> None:
    import triton

    from nanozoo_megabyte.kernels import patch_attention as module

    constants = {"P": size, "H": 8, "K": width, "KP": triton.next_power_of_2(width)}
    constants |= {"M": module.TILE_ROWS, "PRECISION": "tf32", "UPCAST": False}
    if dtype == "fp32":
        constants |= {"M": module.TILE_ROWS // 2, "PRECISION": "tf32x3"}
    kinds = dict.fromkeys(("q", "k", "v", "grad", "out", "d_q", "d_k", "d_v"), f"*{dtype}")
    kinds |= dict.fromkeys(("num_patches", "patch_stride", "place_stride", "head_stride"), "i32")
    kinds |= {"scale": "fp32"}
    num_warps = 4 if dtype == "bf16" and width <= 64 else 8
    compile_for_sm_90(getattr(module, kernel), kinds, constants, num_warps=num_warps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case", [*CASES.values(), (1000, 8, 8, 64), (1000, 8, 16, 64)], ids=lambda case: str(case)
)
def test_gpu_kernels_equal_the_reference(case: tuple, dtype: torch.dtype) -> None:
    inputs = [x.cuda() for x in make_inputs(case, dtype)]
    expected = value_and_gradients(patch_attention_reference, [x.float() for x in inputs])
    found = value_and_gradients(kernels, inputs)
    assert_close_in_size(found, expected, 5e-3 if dtype == torch.bfloat16 else 1e-5)
