"""An output head whose logits are reduced to a few numbers per row, without ever being whole.

The logits of a chunk of rows are made by one matrix product, reduced, and made again in the
backward pass, where they turn into their own gradient in place. What the reduction is, `Reduction`
says; core's log_mixture and sedd's score_sums are two.

N rows, n rows of a chunk, D model_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.precision import cast_once
from nanozoo_core.ops.optional_triton import triton

# A chunk of float32 logits: about the size of a GPU's L2 cache, and at most 512 rows on a CPU,
# where fewer rows make the products slower and more leave the caches.
CHUNK_BYTES = 64 << 20
CHUNK_ROWS_ON_CPU = 512
# A row is read in tiles of this many logits, by one program, so that its sums stay in registers.
BLOCK_V = 2048


@dataclass(frozen=True)
class Reduction:
    """Two steps over the logits of a chunk, each in torch and in Triton."""

    num_results: int
    num_saved: int
    """Numbers per row that the backward step needs besides."""
    forward: Callable[..., None]
    """(logits (n, V), *rows (n,), out (num_results + num_saved, n)) fills `out`."""
    backward: Callable[..., None]
    """(logits, *rows, *saved, *gradients), each but the first (n,), replaces the logits by their
    gradient."""
    forward_kernel: Any
    backward_kernel: Any
    """The same in Triton, a program per row: (logits, *rows, out, its row stride, the logits' row
    stride, V, BLOCK), and (logits, *rows, *saved, *gradients, row stride, V, BLOCK)."""

    def steps(self, x: Tensor) -> tuple[Callable[..., None], Callable[..., None]]:
        """Those for the device of `x`; a kernel is float32."""
        if triton is None or not x.is_cuda or x.dtype == torch.float64:
            return self.forward, self.backward
        return self.forward_triton, self.backward_triton

    def forward_triton(self, logits: Tensor, *rows_and_out: Tensor) -> None:
        *rows, out = rows_and_out
        _launch(
            self.forward_kernel, logits, *(row.contiguous() for row in rows), out, out.stride(0)
        )

    def backward_triton(self, logits: Tensor, *rows: Tensor) -> None:
        _launch(self.backward_kernel, logits, *(row.contiguous() for row in rows))


def reduced_head(
    x: Tensor, weight: Tensor, bias: Tensor, reduction: Reduction, *rows: Tensor
) -> tuple[Tensor, ...]:
    """The reduction of x W^T + b, a tensor (N,) for each result: float32 (float64 for float64
    inputs), differentiable in x, weight and bias.

    Args: x: (N, D). weight: (V, D). bias: (V,). rows: what the reduction asks of each row, (N,).
    """
    if torch.compiler.is_compiling():
        # Loops over chunks are nothing a compiler could improve: break the graph.
        return torch.compiler.disable(reduced_head)(x, weight, bias, reduction, *rows)
    return _ReducedHead.apply(x, weight, bias, reduction, *rows)  # type: ignore[no-untyped-call]


class _ReducedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reduction: Reduction, *rows: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = (x, weight, bias)
        if torch.is_autocast_enabled(x.device.type):
            product = torch.get_autocast_dtype(x.device.type)
            inputs = (x.to(product), cast_once(weight, product), cast_once(bias, product))
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        size = reduction.num_results + reduction.num_saved
        results = torch.empty(size, x.shape[0], dtype=dtype, device=x.device)
        step, _ = reduction.steps(x)
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x, weight.shape[0]):
                logits = F.linear(inputs[0][part], *inputs[1:])
                step(logits, *(row[part] for row in rows), results[:, part])
        found, saved = results[: reduction.num_results], results[reduction.num_results :]
        ctx.save_for_backward(*inputs, *rows, saved.clone())
        ctx.reduction, ctx.dtypes = reduction, (x.dtype, weight.dtype, bias.dtype)
        return tuple(result.clone() for result in found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias, *rows, saved = ctx.saved_tensors
        rows = [*rows, *saved, *grads]
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape, dtype=grads[0].dtype, device=x.device)
        grad_bias = torch.zeros(bias.shape, dtype=grads[0].dtype, device=x.device)
        _, step = ctx.reduction.steps(x)
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x, weight.shape[0]):
                logits = F.linear(x[part], weight, bias)
                step(logits, *(row[part] for row in rows))  # logits now hold their gradient
                grad_x[part] = logits @ weight
                if logits.dtype == grad_weight.dtype:
                    grad_weight.addmm_(logits.T, x[part])
                else:
                    grad_weight += logits.T @ x[part]
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
        found = (grad_x, grad_weight, grad_bias)
        cast = [gradient.to(dtype) for gradient, dtype in zip(found, ctx.dtypes, strict=True)]
        return *cast, None, *(None for _ in ctx.saved_tensors[3:-1])


def _chunks(x: Tensor, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    if x.device.type == "cpu":
        size = min(size, CHUNK_ROWS_ON_CPU)
    return [slice(start, start + size) for start in range(0, x.shape[0], size)]


def _launch(kernel: Any, logits: Tensor, *arguments: Any) -> None:
    num_rows, vocab_size = logits.shape
    kernel[(num_rows,)](
        logits, *arguments, logits.stride(0), vocab_size,
        BLOCK=min(BLOCK_V, triton.next_power_of_2(vocab_size)), num_warps=8,
    )  # fmt: skip
