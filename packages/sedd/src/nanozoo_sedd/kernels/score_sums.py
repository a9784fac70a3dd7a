"""The output head of a score network over all tokens: sums of s = e^a and of log s = a.

With a = x W^T + b in memory this needs several (N, V) float32 tensors; here a chunk of them is
reduced to three numbers per row at a time. One read of a row forward, one read and one write
backward. The entry at a row's own token, where a score is 1 whatever the network says, is left out
of everything.

N rows, n rows of a chunk, D model_dim, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.ops.optional_triton import jit, tl
from nanozoo_core.ops.reduced_head import Reduction, reduced_head


def score_sums(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all tokens y but a row's own, of the scores s_y = exp(a_y), a = x W^T + b.

    Args: x: (N, D). weight: (V, D). bias: (V,). own, true: (N,) int64.

    Returns: sum s_y, sum log s_y, and log s_true (0 where true is own), each (N,) float32 (float64
        for float64 inputs), differentiable in x, weight and bias.
    """
    mass, total, log_true = reduced_head(x, weight, bias, SCORE_SUMS, own, true)
    return mass, total, log_true


def score_sums_reference(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all logits in memory, for autograd to differentiate."""
    logits = F.linear(x, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_scores = logits.scatter(1, own[:, None], 0.0)
    log_true = log_scores.gather(1, true[:, None])[:, 0]
    return log_scores.exp().sum(1) - 1, log_scores.sum(1), log_true


def _forward_torch(logits: Tensor, own: Tensor, true: Tensor, out: Tensor) -> None:
    """Fills `out` (3, n): sum s, sum log s, log s_true, all without the own entry."""
    log_scores = logits.to(out.dtype).scatter_(1, own[:, None], 0.0)
    torch.sum(log_scores, 1, out=out[1])
    out[2] = log_scores.gather(1, true[:, None])[:, 0]
    scores = log_scores.exp_().scatter_(1, own[:, None], 0.0)
    torch.sum(scores, 1, out=out[0])


def _backward_torch(
    logits: Tensor, own: Tensor, true: Tensor,
    grad_mass: Tensor, grad_total: Tensor, grad_true: Tensor,
) -> None:  # fmt: skip
    """Replaces logits (n, V) by g_mass s_y + g_total + g_true [y = true], with 0 at the own."""
    grad = logits.to(grad_mass.dtype).exp_().mul_(grad_mass[:, None]).add_(grad_total[:, None])
    grad.scatter_add_(1, true[:, None], grad_true[:, None])
    grad.scatter_(1, own[:, None], 0.0)
    logits.copy_(grad)


@jit
def _forward_kernel(
    logits_ptr, own_ptr, true_ptr, out_ptr, out_stride, row_stride, vocab_size, BLOCK: tl.constexpr
):  # fmt: skip
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


@jit
def _backward_kernel(
    logits_ptr, own_ptr, true_ptr, grad_mass_ptr, grad_total_ptr, grad_true_ptr,
    row_stride, vocab_size, BLOCK: tl.constexpr,
):  # fmt: skip
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


SCORE_SUMS = Reduction(3, 0, _forward_torch, _backward_torch, _forward_kernel, _backward_kernel)
