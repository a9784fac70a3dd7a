"""The output head of a uniform diffusion: p = softmax(x W^T + b), and sum_j log(1 + r p_j).

With the logits in memory this needs about four more (N, V) float32 tensors. Here the logits of a
chunk of rows are made by one matrix product, reduced to three numbers per row, and made again in
the backward pass, where they turn into their own gradient in place.

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

# One chunk of float32 logits: about the size of a GPU's L2 cache, and small on a CPU.
CHUNK_BYTES = 64 << 20
# A row is read in tiles of this many logits, by one program, so that its statistics stay in
# registers: two reads forward (the second from cache), one read and one write backward.
BLOCK_V = 2048


def log_mixture(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    own: Tensor,
    true: Tensor,
    ratio: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities at two ids per row, and the sum over all of log(1 + ratio p).

    Args:
        x: (N, D). weight: (V, D). bias: (V,). own, true: (N,) int64. ratio: (N,) float32, >= 0.

    Returns: log p_own, log p_true and sum_j log(1 + ratio p_j), each (N,) float32 (float64 for
        float64 inputs), differentiable in x, weight and bias.
    """
    return _LogMixture.apply(x, weight, bias, own, true, ratio)  # type: ignore[no-untyped-call]


def log_mixture_reference(
    x: Tensor, weight: Tensor, bias: Tensor, own: Tensor, true: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all logits in memory, for autograd to differentiate."""
    logits = F.linear(x, weight, bias)
    log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    log_own = log_probs.gather(1, own[:, None])[:, 0]
    log_true = log_probs.gather(1, true[:, None])[:, 0]
    return log_own, log_true, torch.log1p(ratio[:, None] * log_probs.exp()).sum(1)


class _LogMixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        own: Tensor,
        true: Tensor,
        ratio: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            inputs = (x.to(dtype), weight.to(dtype), bias.to(dtype))
        else:
            inputs = (x, weight, bias)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        results = torch.empty(5, x.shape[0], dtype=dtype, device=x.device)
        ratio = ratio.to(dtype)
        forward = _forward_triton if _use_triton(x) else _forward_torch
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x.shape[0], weight.shape[0]):
                logits = F.linear(inputs[0][part], *inputs[1:])
                forward(logits, own[part], true[part], ratio[part], results[:, part])
        log_own, log_true, total, lse, curvature = results.unbind()
        ctx.save_for_backward(*inputs, own, true, ratio, lse.clone(), curvature.clone())
        ctx.dtypes = (x.dtype, weight.dtype, bias.dtype)
        return log_own.clone(), log_true.clone(), total.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_own: Tensor, grad_true: Tensor, grad_total: Tensor) -> Any:
        x, weight, bias, own, true, ratio, lse, curvature = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape, dtype=lse.dtype, device=x.device)
        grad_bias = torch.zeros(bias.shape, dtype=lse.dtype, device=x.device)
        backward = _backward_triton if _use_triton(x) else _backward_torch
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x.shape[0], weight.shape[0]):
                logits = F.linear(x[part], weight, bias)
                rows = (t[part] for t in (own, true, ratio, lse, curvature))
                grads = (t[part] for t in (grad_own, grad_true, grad_total))
                backward(logits, *rows, *grads)  # logits now hold their gradient
                grad_x[part] = logits @ weight
                if logits.dtype == grad_weight.dtype:
                    grad_weight.addmm_(logits.T, x[part])
                else:
                    grad_weight += logits.T @ x[part]
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
        dx, dw, db = ctx.dtypes
        return grad_x.to(dx), grad_weight.to(dw), grad_bias.to(db), None, None, None


def _use_triton(x: Tensor) -> bool:
    return triton is not None and x.is_cuda and x.dtype != torch.float64


def _chunks(num_rows: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [slice(start, start + size) for start in range(0, num_rows, size)]


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
    logits: Tensor,
    own: Tensor,
    true: Tensor,
    ratio: Tensor,
    lse: Tensor,
    curvature: Tensor,
    grad_own: Tensor,
    grad_true: Tensor,
    grad_total: Tensor,
) -> None:
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


if triton is not None:

    @triton.jit
    def _log1p(x):  # type: ignore[no-untyped-def]
        # log(1 + x) loses x below float32's spacing at 1, and such terms are summed over all of V.
        return tl.where(x < 1e-4, x - 0.5 * x * x, tl.log(1.0 + x))

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        own_ptr,
        true_ptr,
        ratio_ptr,
        out_ptr,
        out_stride,
        row_stride,
        vocab_size,
        BLOCK: tl.constexpr,
    ):
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

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        own_ptr,
        true_ptr,
        ratio_ptr,
        lse_ptr,
        curvature_ptr,
        grad_own_ptr,
        grad_true_ptr,
        grad_total_ptr,
        row_stride,
        vocab_size,
        BLOCK: tl.constexpr,
    ):
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

    def _forward_triton(
        logits: Tensor, own: Tensor, true: Tensor, ratio: Tensor, out: Tensor
    ) -> None:
        num_rows, vocab_size = logits.shape
        _forward_kernel[(num_rows,)](
            logits,
            own.contiguous(),
            true.contiguous(),
            ratio.contiguous(),
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
