"""The tests of an output head that is reduced without all its logits: one class, a subclass a head.

N rows, D model_dim, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.ops import reduced_head
from nanozoo_core.ops.reduced_head import Reduction
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted

ALLOWED_IMPORTS = {"__future__", "collections", "dataclasses", "typing", "torch", "triton"}


class ReducedHeadTests:
    """Values and gradients of every form of a head against its reference."""

    module: ModuleType
    reduction: Reduction
    head: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]
    logit_size = 1.0
    """Of the logits in the tests that are not of 16 bits."""

    def row_arguments(
        self, rows: int, vocab_size: int, dtype: torch.dtype, generator: torch.Generator
    ) -> list[Tensor]:
        """What the head asks of each row besides its own and its true id."""
        return []

    def make_inputs(
        self,
        rows: int,
        vocab_size: int,
        dtype: torch.dtype,
        *,
        dim: int = 16,
        logit_size: float | None = None,
    ) -> list[Tensor]:
        """Features, weight, bias, own and true ids, a third of them equal, and the rest."""
        generator = seeded_generator(rows, vocab_size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        ids = torch.randint(vocab_size, (2, rows), generator=generator)
        ids[1, : rows // 3] = ids[0, : rows // 3]
        others = self.row_arguments(rows, vocab_size, dtype, generator)
        x = normal(rows, dim) * (logit_size or self.logit_size) / dim**0.5
        head = (x, normal(vocab_size, dim), normal(vocab_size))
        return [*(tensor.to(dtype) for tensor in head), *ids, *others]

    def values_and_grads(
        self, function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]
    ) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs[:3]]
        outputs = function(*leaves, *inputs[3:])
        generator = seeded_generator(9)
        weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
        total = torch.stack([(w * o).sum() for w, o in zip(weights, outputs, strict=True)]).sum()
        return [*(o.detach() for o in outputs), *torch.autograd.grad(total, leaves)]

    def found_and_expected(self, inputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each result and gradient of the head beside the reference's."""
        cls = type(self)
        found = self.values_and_grads(cls.head, inputs)
        return list(zip(found, self.values_and_grads(cls.reference, inputs), strict=True))

    def assert_equal_in_float64(self, inputs: list[Tensor]) -> None:
        for found, expected in self.found_and_expected(inputs):
            assert_close(found, expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
    @pytest.mark.parametrize("chunk_rows", [7, 10_000])
    def test_chunked_form_equals_the_reference(
        self, rows: int, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reduced_head, "CHUNK_BYTES", 4 * 37 * chunk_rows)
        self.assert_equal_in_float64(self.make_inputs(rows, 37, torch.float64))

    def test_non_contiguous_inputs(self) -> None:
        inputs = self.make_inputs(30, 40, torch.float64)
        inputs[0] = inputs[0].repeat(1, 2)[:, ::2]
        inputs[1] = inputs[1].T.contiguous().T
        self.assert_equal_in_float64(inputs)

    def test_float32_stays_within_its_rounding(self) -> None:
        inputs = self.make_inputs(100, 300, torch.float32)
        exact = [x.double() if x.is_floating_point() else x for x in inputs]
        found = self.values_and_grads(type(self).head, inputs)
        expected = self.values_and_grads(type(self).reference, exact)
        assert_within(list(zip(found, expected, strict=True)), 1e-5)

    def test_gradcheck(self) -> None:
        inputs = self.make_inputs(5, 7, torch.float64)
        leaves = [x.requires_grad_() for x in inputs[:3]]
        assert torch.autograd.gradcheck(lambda *a: type(self).head(*a, *inputs[3:]), leaves)

    def test_autocast_computes_in_bfloat16_and_returns_float32(self) -> None:
        """bfloat16 has 8 bits: logits of size 3 are off by 0.01, results by a percent."""
        inputs = self.make_inputs(64, 50, torch.float32, logit_size=1.0)
        expected = self.values_and_grads(type(self).reference, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.values_and_grads(type(self).head, inputs)
        assert all(result.dtype == torch.float32 for result in found)
        assert_within(list(zip(found, expected, strict=True)), 2e-2)

    @compiled
    def test_kernels_equal_the_torch_form_in_the_interpreter(self) -> None:
        run_interpreted(str(sys.modules[type(self).__module__].__file__), num_tests=4)

    @interpreted
    @pytest.mark.parametrize(("rows", "vocab_size"), [(3, 200), (2, 64), (1, 37), (4, 65)])
    def test_interpreted_kernels_equal_the_torch_form(
        self, rows: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reduced_head, "BLOCK_V", 64)  # several tiles per row
        do = self.reduction
        generator = seeded_generator(rows)
        logits = 3 * torch.randn(rows, vocab_size, generator=generator)
        own, true = torch.randint(vocab_size, (2, rows), generator=generator)
        true[0] = own[0]
        arguments = [
            own,
            true,
            *self.row_arguments(rows, vocab_size, torch.float32, generator),
        ]
        expected, found = (torch.empty(do.num_results + do.num_saved, rows) for _ in range(2))
        do.forward(logits.clone(), *arguments, expected)
        do.forward_triton(logits, *arguments, found)
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
        saved = expected[do.num_results :]
        grads = torch.randn(do.num_results, rows, generator=generator)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            expected, found = logits.to(dtype, copy=True), logits.to(dtype, copy=True)
            do.backward(expected, *arguments, *saved, *grads)
            do.backward_triton(found, *arguments, *saved, *grads)
            assert_close(found, expected, rtol=tolerance, atol=tolerance)

    @compiled
    @pytest.mark.slow
    @pytest.mark.parametrize("logits", ["*fp32", "*bf16"])
    @pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
    def test_kernel_compiles_for_sm_90(self, kernel: str, logits: str) -> None:
        function = getattr(self.module, kernel)
        kinds = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in function.arg_names}
        kinds |= {"logits_ptr": logits, "own_ptr": "*i64", "true_ptr": "*i64"}
        constants = {"BLOCK": reduced_head.BLOCK_V}
        compile_for_sm_90(function, kinds, constants, num_warps=8)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    @pytest.mark.parametrize("rows", [1, 65, 1000])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_kernels_equal_the_reference_on_a_gpu(self, rows: int, dtype: torch.dtype) -> None:
        inputs = [x.cuda() for x in self.make_inputs(rows, 5003, dtype, dim=64, logit_size=1.0)]
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert_within(self.found_and_expected(inputs), tolerance)

    def test_module_needs_torch_and_triton_alone(self) -> None:
        for path in (str(self.module.__file__), str(reduced_head.__file__)):
            lines = [line.split() for line in Path(path).read_text().splitlines()]
            found = {words[1] for words in lines if words[:1] in (["import"], ["from"])}
            found -= {"nanozoo_core.ops.reduced_head", "nanozoo_core.ops.optional_triton"}
            found -= {"nanozoo_core.machine.precision"}  # which imports torch alone
            assert {name.partition(".")[0] for name in found} <= ALLOWED_IMPORTS


def assert_within(pairs: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    """Each found tensor within `tolerance` of its expected one's largest entry."""
    for found, expected in pairs:
        error = (found.double() - expected.double()).abs().max()
        assert float(error) <= tolerance * float(expected.double().abs().max())
