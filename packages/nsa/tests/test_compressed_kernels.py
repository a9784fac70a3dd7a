"""Triton kernels of compressed attention and of the choice of blocks against the plain form; they
run in the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted
from nanozoo_core.testing.laws import assert_close_in_size
from nanozoo_nsa.compressed.attention import compressed_attention
from nanozoo_nsa.config import Grid
from nanozoo_nsa.mixer import NSAMixer

# Sequences, key heads, positions, query heads of each, head width, and the blocks.
CASES = {
    "one-position": (1, 1, 1, 2, 16, Grid(8, 4, 16, 4, 1, 2)),
    "no-whole-block": (2, 1, 7, 1, 16, Grid(8, 4, 16, 4, 1, 2)),
    "one-head": (1, 2, 63, 1, 16, Grid(8, 4, 16, 5, 1, 1)),
    "two-heads": (2, 1, 65, 2, 16, Grid(8, 8, 16, 4, 0, 1)),
    "three-heads": (1, 1, 200, 3, 32, Grid(16, 4, 16, 6, 1, 2)),
    "many-heads": (1, 1, 20, 17, 16, Grid(8, 4, 16, 3, 0, 1)),
    "long-blocks": (1, 1, 130, 2, 16, Grid(8, 4, 32, 4, 1, 1)),
    "short-blocks": (1, 1, 200, 1, 16, Grid(4, 2, 4, 7, 1, 1)),
    "forced-alone": (1, 1, 64, 2, 16, Grid(8, 4, 16, 3, 1, 2)),
}


def make_inputs(case: tuple, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, heads, length, group, width, grid = case
    generator = torch.Generator().manual_seed(0)
    windows = (batch, heads, grid.num_windows(length), width)
    shapes = ((batch, heads, length, group, width), windows, windows)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def plain(*inputs: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return compressed_attention(*inputs, grid, "gather")


def kernels(*inputs: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return compressed_attention(*inputs, grid, "triton")


def run(
    form: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], grid: Grid
) -> tuple[list[Tensor], Tensor]:
    """The result and the gradients of all inputs, and the chosen blocks."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, chosen = form(*leaves, grid=grid)
    assert not chosen.requires_grad
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)], chosen


@compiled
def test_kernels_agree_with_the_plain_form_in_a_child_process() -> None:
    run_interpreted(__file__, num_tests=len(CASES) + 7)


@interpreted
@pytest.mark.parametrize(
    ("case", "tile"),  # half as many rows and keys in float32
    [*((case, 32) for case in CASES.values()), (CASES["three-heads"], 64)],
    ids=[*CASES, "three-heads-in-large-tiles"],
)
def test_interpreted_kernels_equal_the_plain_form(
    case: tuple, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanozoo_nsa.compressed import attention_triton as compressed

    for name in ("TILE_ROWS", "TILE_KEYS"):
        monkeypatch.setattr(compressed, name, tile)
    monkeypatch.setattr(compressed, "TILE_BLOCKS", 16)
    monkeypatch.setattr(compressed, "KEY_PROGRAMS", 8)  # several tiles of rows for each
    inputs, grid = make_inputs(case), case[-1]
    (found, chosen), (expected, wanted) = (run(f, inputs, grid) for f in (kernels, plain))
    assert_close_in_size(found, expected, 1e-5)
    assert torch.equal(chosen, wanted)


@interpreted
def test_interpreted_queries_before_the_first_whole_block_get_zeros() -> None:
    case = CASES["three-heads"]
    y, _ = kernels(*make_inputs(case), grid=case[-1])
    assert y[:, :, :15].abs().max() == 0
    assert y[:, :, 15].abs().min() > 0


@interpreted
def test_interpreted_ties_go_to_the_first_block() -> None:
    grid = Grid(8, 4, 16, 6, 1, 1)
    q, keys, values = make_inputs((1, 1, 160, 3, 16, grid))
    _, chosen = kernels(torch.zeros_like(q), keys, values, grid=grid)
    # The last query, in block 9, may choose among 1 .. 8, all of equal weight.
    assert chosen[0, 0, -1].tolist() == [1, 2, 3, 4]
    assert torch.equal(chosen, plain(torch.zeros_like(q), keys, values, grid=grid)[1])


@interpreted
def test_interpreted_kernels_take_bfloat16() -> None:
    case = CASES["three-heads"]
    low, grid = make_inputs(case, torch.bfloat16), case[-1]
    (found, chosen), (expected, wanted) = run(kernels, low, grid), run(plain, _wide(low), grid)
    # 8 significant bits: results, which the interpreter cuts off, are wrong by 2^-8 at most.
    assert_close_in_size(found, expected, 5e-3)
    assert found[0].dtype == torch.bfloat16
    # Scores are exact products, summed in float32.
    assert torch.equal(chosen, wanted)


@interpreted
def test_interpreted_kernels_take_strided_inputs() -> None:
    case = CASES["three-heads"]
    inputs = make_inputs(case)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    strided[0] = inputs[0].mT.contiguous().mT
    assert not strided[0].is_contiguous()
    for found, expected in zip(
        kernels(*strided, grid=case[-1]), kernels(*inputs, grid=case[-1]), strict=True
    ):
        assert torch.equal(found, expected)


@interpreted
@pytest.mark.parametrize("documents", [False, True])
def test_interpreted_mixer_equals_that_of_plain_torch(documents: bool) -> None:
    results = []
    x = torch.randn(2, 75, 48, generator=torch.Generator().manual_seed(0))
    numbers = (torch.arange(75) >= 22).int().expand(2, -1) if documents else None
    for impl in ("triton", "gather"):
        torch.manual_seed(0)
        changes = {"model_dim": 48, "num_heads": 3, "num_kv_heads": 1, "nsa_impl": impl}
        mixer = NSAMixer(model_config("nsa", changes))
        y = mixer(x, documents=numbers)
        y.square().sum().backward()
        results.append([y.detach(), *(parameter.grad for parameter in mixer.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def _wide(inputs: list[Tensor]) -> list[Tensor]:
    return [x.float() for x in inputs]


@compiled
@pytest.mark.parametrize(
    ("dtype", "width", "tile"),
    [("bf16", 64, 64), ("bf16", 128, 64), ("fp32", 64, 32), ("fp32", 128, 32)],
)
@pytest.mark.parametrize("kernel", ["_attend", "_query_gradients", "_key_gradients", "_choose"])
def test_kernel_compiles_for_sm_90(kernel: str, dtype: str, width: int, tile: int) -> None:
    from nanozoo_nsa.compressed import attention_triton as compressed

    constants = {"G": 3, "K": width, "WINDOW": 32, "STRIDE": 16, "BLOCK": 64, "INIT": 1, "LOCAL": 2}
    constants |= {"M": tile, "N": tile, "R": 64, "F": 13, "FP": 16}
    if kernel == "_choose":
        constants["N"] = compressed.TILE_BLOCKS
    constants |= {"PRECISION": "tf32x3" if dtype == "fp32" else "tf32", "UPCAST": False}
    kinds = dict.fromkeys(("q", "keys", "values", "grad", "out", "d_q"), f"*{dtype}")
    kinds |= dict.fromkeys(("norms", "delta", "partial"), "*fp32") | {"chosen": "*i32"}
    kinds |= dict.fromkeys(("length", "num_windows", "num_parts"), "i32") | {"scale": "fp32"}
    num_warps = 4 if dtype == "bf16" and width <= 64 else 8
    compile_for_sm_90(getattr(compressed, kernel), kinds, constants, num_warps=num_warps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, 3000])
@pytest.mark.parametrize("group", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_kernels_equal_the_plain_form(length: int, group: int, dtype: torch.dtype) -> None:
    case = (2, 2, length, group, 64, Grid(32, 16, 64, 8, 1, 2))
    inputs, grid = [x.cuda() for x in make_inputs(case, dtype)], case[-1]
    (found, chosen), (expected, wanted) = (
        run(kernels, inputs, grid),
        run(plain, _wide(inputs), grid),
    )
    assert_close_in_size(found, expected, 5e-3 if dtype == torch.bfloat16 else 1e-5)
    # Sums in another order may turn the choice between two blocks of almost equal scores.
    assert (chosen == wanted).float().mean() >= 0.99
