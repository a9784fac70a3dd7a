"""The output head of a uniform diffusion: p = softmax(x W^T + b), and sum_j log(1 + r p_j).

With the logits in memory this needs about four more (N, V) float32 tensors; here a chunk of them is
reduced to three numbers per row at a time. Two reads of a row forward (the second from cache), one
read and one write backward.

N rows, n rows of a chunk, D model_dim, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.ops.optional_triton import jit, tl
from nanozoo_core.ops.reduced_head import Reduction, reduced_head


def log_mixture(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities at two ids per row, and the sum over all of log(1 + ratio p).

    Args:
        x: (N, D). weight: (V, D). bias: (V,). own, true: (N,) int64. ratio: (N,) float32, >= 0.

    Returns: log p_own, log p_true and sum_j log(1 + ratio p_j), each (N,) float32 (float64 for
        float64 inputs), differentiable in x, weight and bias.
    """
    ratio = ratio.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    log_own, log_true, total = reduced_head(x, weight, bias, LOG_MIXTURE, own, true, ratio)
    return log_own, log_true, total


def log_mixture_reference(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all logits in memory, for autograd to differentiate."""
    logits = F.linear(x, weight, bias)
    log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    log_own = log_probs.gather(1, own[:, None])[:, 0]
    log_true = log_probs.gather(1, true[:, None])[:, 0]
    return log_own, log_true, torch.log1p(ratio[:, None] * log_probs.exp()).sum(1)


def _forward_torch(logits: Tensor, own: Tensor, true: Tensor, ratio: Tensor, out: Tensor) -> None:
    """Fills `out` (5, n): log p_own, log p_true, the sum, and for the backward pass the log-sum-exp
    and sum_j r p_j / (1 + r p_j)."""
    logits = logits.to(out.dtype)
    out[3] = logits.logsumexp(1)
    out[0] = logits.gather(1, own[:, None])[:, 0] - out[3]
    out[1] = logits.gather(1, true[:, None])[:, 0] - out[3]
    scaled = logits.sub_(out[3][:, None]).exp_().mul_(ratio[:, None])  # r p
    total = torch.log1p(scaled)
    out[2] = total.sum(1)
    torch.add(scaled, 1, out=total)
    out[4] = scaled.div_(total).sum(1)


def _backward_torch(
    logits: Tensor, own: Tensor, true: Tensor, ratio: Tensor, lse: Tensor, curvature: Tensor,
    grad_own: Tensor, grad_true: Tensor, grad_total: Tensor,
) -> None:  # fmt: skip
    """Replaces logits (n, V) by the gradient p_j (g_total (r / (1 + r p_j) - curvature) - g_own -
    g_true) + g_own [j = own] + g_true [j = true].
    """
    probs = logits.to(lse.dtype).sub_(lse[:, None]).exp_()
    slope = (probs * ratio[:, None]).add_(1).reciprocal_()
    slope.mul_((grad_total * ratio)[:, None])
    slope.sub_((grad_total * curvature + grad_own + grad_true)[:, None])
    grad = probs.mul_(slope)
    grad.scatter_add_(1, own[:, None], grad_own[:, None])
    grad.scatter_add_(1, true[:, None], grad_true[:, None])
    logits.copy_(grad)


@jit
def _log1p(x):
    # log(1 + x) loses x below float32's spacing at 1, and such terms are summed over all of V.
    return tl.where(x < 1e-4, x - 0.5 * x * x, tl.log(1.0 + x))


@jit
def _forward_kernel(
    logits_ptr, own_ptr, true_ptr, ratio_ptr, out_ptr, out_stride, row_stride, vocab_size,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start_ptr = logits_ptr + row * row_stride
    columns = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        tile = tl.load(start_ptr + start + columns, mask=inside, other=-float("inf"))
        tile = tile.to(tl.float32)
        higher = tl.maximum(peak, tile)
        # Lanes that have seen nothing yet hold -inf, whose difference is not a number.
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        mass = mass * tl.exp(peak - safe) + tl.exp(tile - safe)
        peak = higher
    top = tl.max(peak, 0)
    lse = top + tl.log(tl.sum(mass * tl.exp(peak - top), 0))

    ratio = tl.load(ratio_ptr + row)
    total = tl.zeros((BLOCK,), tl.float32)
    curvature = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        tile = tl.load(start_ptr + start + columns, mask=inside, other=-float("inf"))
        scaled = ratio * tl.exp(tile.to(tl.float32) - lse)
        total += _log1p(scaled)
        curvature += scaled / (1.0 + scaled)
    own = tl.load(start_ptr + tl.load(own_ptr + row)).to(tl.float32)
    true = tl.load(start_ptr + tl.load(true_ptr + row)).to(tl.float32)
    tl.store(out_ptr + row, own - lse)
    tl.store(out_ptr + out_stride + row, true - lse)
    tl.store(out_ptr + 2 * out_stride + row, tl.sum(total, 0))
    tl.store(out_ptr + 3 * out_stride + row, lse)
    tl.store(out_ptr + 4 * out_stride + row, tl.sum(curvature, 0))


@jit
def _backward_kernel(
    logits_ptr, own_ptr, true_ptr, ratio_ptr, lse_ptr, curvature_ptr,
    grad_own_ptr, grad_true_ptr, grad_total_ptr, row_stride, vocab_size, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start_ptr = logits_ptr + row * row_stride
    own = tl.load(own_ptr + row)
    true = tl.load(true_ptr + row)
    ratio = tl.load(ratio_ptr + row)
    lse = tl.load(lse_ptr + row)
    grad_own = tl.load(grad_own_ptr + row)
    grad_true = tl.load(grad_true_ptr + row)
    grad_total = tl.load(grad_total_ptr + row)
    constant = grad_total * tl.load(curvature_ptr + row) + grad_own + grad_true
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        tile = tl.load(start_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
        probs = tl.exp(tile - lse)
        grad = probs * (grad_total * ratio / (1.0 + ratio * probs) - constant)
        grad += tl.where(columns == own, grad_own, 0.0)
        grad += tl.where(columns == true, grad_true, 0.0)
        tl.store(start_ptr + columns, grad.to(logits_ptr.dtype.element_ty), mask=inside)


LOG_MIXTURE = Reduction(3, 2, _forward_torch, _backward_torch, _forward_kernel, _backward_kernel)
