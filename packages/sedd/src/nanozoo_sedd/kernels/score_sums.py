"""The output head of a score network over all tokens: sums of s = e^a and of log s = a.

With a = x W^T + b in memory this needs several (N, V) float32 tensors. Here the logits of a chunk
of rows are made by one matrix product, reduced to three numbers per row, and made again in the
backward pass, where they turn into their own gradient in place. The entry at a row's own token,
where a score is 1 whatever the network says, is left out of everything.

N rows, D model_dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on macOS and Windows
    triton = None

# A chunk of float32 logits: about the size of a GPU's L2 cache, and at most 512 rows on a CPU,
# where fewer rows make the products slower and more leave the caches.
CHUNK_BYTES = 64 << 20
CHUNK_ROWS_ON_CPU = 512
# A row is read in tiles of this many logits, by one program, so that its sums stay in registers:
# one read forward, one read and one write backward.
BLOCK_V = 2048


def score_sums(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all tokens y but a row's own, of the scores s_y = exp(a_y), a = x W^T + b.

    Args: x: (N, D). weight: (V, D). bias: (V,). own, true: (N,) int64.

    Returns: sum s_y, sum log s_y, and log s_true (0 where true is own), each (N,) float32 (float64
        for float64 inputs), differentiable in x, weight and bias.
    """
    if torch.compiler.is_compiling():
        # Loops over chunks are nothing a compiler could improve: break the graph.
        return torch.compiler.disable(score_sums)(x, weight, bias, own, true)
    return _ScoreSums.apply(x, weight, bias, own, true)  # type: ignore[no-untyped-call]


def score_sums_reference(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all logits in memory, for autograd to differentiate."""
    logits = F.linear(x, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_scores = logits.scatter(1, own[:, None], 0.0)
    log_true = log_scores.gather(1, true[:, None])[:, 0]
    return log_scores.exp().sum(1) - 1, log_scores.sum(1), log_true


class _ScoreSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            inputs = (x.to(dtype), weight.to(dtype), bias.to(dtype))
        else:
            inputs = (x, weight, bias)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        results = torch.empty(3, x.shape[0], dtype=dtype, device=x.device)
        forward = _forward_triton if _use_triton(x) else _forward_torch
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x, weight.shape[0]):
                logits = F.linear(inputs[0][part], *inputs[1:])
                forward(logits, own[part], true[part], results[:, part])
        ctx.save_for_backward(*inputs, own, true)
        ctx.dtypes = (x.dtype, weight.dtype, bias.dtype)
        mass, total, log_true = results.unbind()
        return mass.clone(), total.clone(), log_true.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mass: Tensor, grad_total: Tensor, grad_true: Tensor) -> Any:
        x, weight, bias, own, true = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape, dtype=grad_mass.dtype, device=x.device)
        grad_bias = torch.zeros(bias.shape, dtype=grad_mass.dtype, device=x.device)
        backward = _backward_triton if _use_triton(x) else _backward_torch
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x, weight.shape[0]):
                logits = F.linear(x[part], weight, bias)
                grads = (g[part] for g in (grad_mass, grad_total, grad_true))
                backward(logits, own[part], true[part], *grads)  # logits now hold their gradient
                grad_x[part] = logits @ weight
                if logits.dtype == grad_weight.dtype:
                    grad_weight.addmm_(logits.T, x[part])
                else:
                    grad_weight += logits.T @ x[part]
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
        dx, dw, db = ctx.dtypes
        return grad_x.to(dx), grad_weight.to(dw), grad_bias.to(db), None, None


def _use_triton(x: Tensor) -> bool:
    return triton is not None and x.is_cuda and x.dtype != torch.float64


def _chunks(x: Tensor, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    if x.device.type == "cpu":
        size = min(size, CHUNK_ROWS_ON_CPU)
    return [slice(start, start + size) for start in range(0, x.shape[0], size)]


def _forward_torch(logits: Tensor, own: Tensor, true: Tensor, out: Tensor) -> None:
    """Fills `out` (3, n): sum s, sum log s, log s_true, all without the own entry."""
    log_scores = logits.to(out.dtype).scatter_(1, own[:, None], 0.0)
    torch.sum(log_scores, 1, out=out[1])
    out[2] = log_scores.gather(1, true[:, None])[:, 0]
    scores = log_scores.exp_().scatter_(1, own[:, None], 0.0)
    torch.sum(scores, 1, out=out[0])


def _backward_torch(
    logits: Tensor,
    own: Tensor,
    true: Tensor,
    grad_mass: Tensor,
    grad_total: Tensor,
    grad_true: Tensor,
) -> None:
    """Replaces logits (n, V) by g_mass s_y + g_total + g_true [y = true], with 0 at the own."""
    grad = logits.to(grad_mass.dtype).exp_().mul_(grad_mass[:, None]).add_(grad_total[:, None])
    grad.scatter_add_(1, true[:, None], grad_true[:, None])
    grad.scatter_(1, own[:, None], 0.0)
    logits.copy_(grad)


if triton is not None:

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        own_ptr,
        true_ptr,
        out_ptr,
        out_stride,
        row_stride,
        vocab_size,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        start_ptr = logits_ptr + row * row_stride
        own = tl.load(own_ptr + row)
        true = tl.load(true_ptr + row)
        mass = tl.zeros((BLOCK,), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            counts = (columns < vocab_size) & (columns != own)
            tile = tl.load(start_ptr + columns, mask=counts, other=0.0).to(tl.float32)
            mass += tl.where(counts, tl.exp(tile), 0.0)
            total += tile
        log_true = tl.load(start_ptr + true).to(tl.float32)
        tl.store(out_ptr + row, tl.sum(mass, 0))
        tl.store(out_ptr + out_stride + row, tl.sum(total, 0))
        tl.store(out_ptr + 2 * out_stride + row, tl.where(true == own, 0.0, log_true))

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        own_ptr,
        true_ptr,
        grad_mass_ptr,
        grad_total_ptr,
        grad_true_ptr,
        row_stride,
        vocab_size,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        start_ptr = logits_ptr + row * row_stride
        own = tl.load(own_ptr + row)
        true = tl.load(true_ptr + row)
        grad_mass = tl.load(grad_mass_ptr + row)
        grad_total = tl.load(grad_total_ptr + row)
        grad_true = tl.load(grad_true_ptr + row)
        for start in range(0, vocab_size, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocab_size
            tile = tl.load(start_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            grad = grad_mass * tl.exp(tile) + grad_total
            grad += tl.where(columns == true, grad_true, 0.0)
            grad = tl.where(columns == own, 0.0, grad)
            tl.store(start_ptr + columns, grad.to(logits_ptr.dtype.element_ty), mask=inside)

    def _forward_triton(logits: Tensor, own: Tensor, true: Tensor, out: Tensor) -> None:
        num_rows, vocab_size = logits.shape
        _forward_kernel[(num_rows,)](
            logits,
            own.contiguous(),
            true.contiguous(),
            out,
            out.stride(0),
            logits.stride(0),
            vocab_size,
            BLOCK=min(BLOCK_V, triton.next_power_of_2(vocab_size)),
            num_warps=8,
        )

    def _backward_triton(logits: Tensor, *rows: Tensor) -> None:
        num_rows, vocab_size = logits.shape
        _backward_kernel[(num_rows,)](
            logits,
            *(row.contiguous() for row in rows),
            logits.stride(0),
            vocab_size,
            BLOCK=min(BLOCK_V, triton.next_power_of_2(vocab_size)),
            num_warps=8,
        )
