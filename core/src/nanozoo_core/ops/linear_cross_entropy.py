"""The output head and its cross-entropy as one op, which never holds all logits at once.

Tokens are taken in chunks. Of each chunk the logits are made, turned in place into their own
gradient, and multiplied away into the gradients of features and weight, all in the forward pass:
three matrix products, as in the plain form, and memory for one chunk of logits instead of several
copies of all of them. The products are the library's; the step between them, which reads and writes
nothing but logits, is torch or one Triton kernel.

Shapes: N tokens, D model_dim, V vocabulary, M targets of a token, C tokens of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.precision import (
    cast_once,
    product_dtype,
    row_multiple,
    wide_dtype,
    widened,
)
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.ops.optional_triton import triton
from nanozoo_core.ops.softmax_step import FLOAT16_SCALE, softmax_step_torch, softmax_step_triton

Reduction = Literal["mean", "sum", "none"]
Backend = Literal["torch", "triton"]


@uncompiled(with_callees=True)  # loops over chunks are nothing that a compiler could improve
def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *,
    bias: Tensor | None = None, token_weight: Tensor | None = None,
    softcap: float | None = None, normalised: bool = True, reduction: Reduction = "mean",
    chunk_size: int | None = None, backend: Backend | None = None,
) -> Tensor:  # fmt: skip
    """Returns l_i = -w_i log softmax(z_i)[target_i] of the logits z = softcap(x W^T + b).

    With normalised=False the logits stand for a measure u_y = e^{z_y} / V that need not sum to one,
    and l_i = w_i (sum_y u_y - 1 - log u_target): the generalised Kullback-Leibler divergence of the
    target from u, which is never below the normalised loss and equals it where the sum is 1.

    Under autocast, or with half-precision arguments, the matrix products are in that precision;
    softmax, losses and their sums are always float32 (float64 for float64 arguments). Every
    argument but the targets may require a gradient, once. Without gradients only the losses are
    computed. In float16, gradients are scaled within its range and kept in float32 until the
    backward pass has multiplied them by what comes from above, a loss scale among it.

    Args:
        x: (N, D) features. N = 0 is legal.
        weight: (V, D), a parameter or any function of one.
        targets: (N,) int64 in 0 .. V-1; one that must not count is legal, with weight 0.
        bias: (V,).
        token_weight: (N,) w_i; None stands for ones.
        softcap: c in z -> c tanh(z / c) (Gemma 2, arXiv 2408.00118, section 2).
        normalised: False leaves out the softmax; log sum_y u_y is then held within +-60.
        reduction: "mean" is sum_i l_i / sum_i w_i, and 0 where the weights sum to 0; "sum"; "none".
        chunk_size: tokens whose logits are held at once; None chooses by the vocabulary.
        backend: None takes Triton on CUDA where it is installed, torch elsewhere.

    Returns: float32 scalar, or (N,) for "none".
    Raises: ValueError for shapes that do not fit; IndexError, on the CPU, for a target outside the
        vocabulary. On CUDA, where a look would stall the device, its loss is NaN.
    """
    _check(x, weight, targets, bias, token_weight, softcap, reduction, chunk_size)
    head = _Head.choose(x, weight, softcap, chunk_size, backend, normalised=normalised)
    accumulator = wide_dtype(x)
    columns = targets[:, None]
    if reduction == "none":
        losses = _TokenLosses.apply(x, weight, bias, columns, head)
        return losses if token_weight is None else losses * token_weight.to(accumulator)

    if token_weight is not None:
        shares = token_weight.to(accumulator)
        if reduction == "mean":
            total = shares.sum()
            shares = shares / torch.where(total == 0, 1, total)
    else:
        share = 1.0 if reduction == "sum" else 1.0 / max(1, targets.numel())
        shares = torch.full(targets.shape, share, dtype=accumulator, device=x.device)
    with_gradient = torch.is_grad_enabled()
    loss, _ = _SummedLoss.apply(x, weight, bias, shares[:, None], columns, head, with_gradient)
    return loss


@uncompiled(with_callees=True)  # loops over chunks are nothing that a compiler could improve
def multi_target_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, token_weight: Tensor, *,
    bias: Tensor | None = None, softcap: float | None = None,
    chunk_size: int | None = None, backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Several weighed targets of each token on the same logits, at the cost of one: l_im =
    -log softmax(z_i)[target_im], and their sum_im w_im l_im.

    Args:
        targets: (N, M) int64; one that must not count is any legal id, with weight 0.
        token_weight: (N, M) w_im, without gradient.
        all others: as in `linear_cross_entropy`.

    Returns: the sum, a scalar, and all l_im (N, M), without gradient.
    """
    if targets.ndim != 2 or targets.shape != token_weight.shape or targets.shape[1] == 0:
        raise ValueError(
            f"targets {tuple(targets.shape)} and token_weight {tuple(token_weight.shape)} must "
            f"both be (N, M), with M of at least 1"
        )
    for column in targets.unbind(1):
        _check(x, weight, column, bias, None, softcap, "sum", chunk_size)
    head = _Head.choose(x, weight, softcap, chunk_size, backend)
    shares = token_weight.detach().to(wide_dtype(x))
    with_gradient = torch.is_grad_enabled()
    return _SummedLoss.apply(x, weight, bias, shares, targets, head, with_gradient)


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, targets: Tensor, *,
    bias: Tensor | None = None, token_weight: Tensor | None = None,
    softcap: float | None = None, normalised: bool = True, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """The same in a few lines that autograd differentiates, with all logits in memory."""
    logits = F.linear(x, weight, bias)  # (N, V)
    logits = widened(logits)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, reduction="none")  # (N,)
    if not normalised:
        log_mass = logits.logsumexp(1) - math.log(logits.shape[1])
        losses = losses - log_mass + torch.expm1(log_mass)
    if token_weight is not None:
        losses = losses * token_weight
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    total = losses.new_tensor(targets.numel()) if token_weight is None else token_weight.sum()
    return losses.sum() / torch.where(total == 0, 1, total)


# -- chunks of tokens, gradients made on the way -------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """What the passes of one call share."""

    softcap: float | None
    normalised: bool
    chunk_size: int
    dtype: torch.dtype  # of the matrix products
    backend: Backend

    @classmethod
    def choose(
        cls, x: Tensor, weight: Tensor, softcap: float | None, chunk_size: int | None,
        backend: Backend | None, *, normalised: bool = True,
    ) -> _Head:  # fmt: skip
        dtype = product_dtype(x)
        chunk_size = _chunk_size(x, weight, chunk_size, dtype)
        backend = backend or _default_backend(x)
        return cls(softcap, normalised, chunk_size, dtype, backend)


@dataclass
class _Gradients:
    x: Tensor | None = None  # (N, D)
    weight: Tensor | None = None  # (V, D)
    bias: Tensor | None = None  # (V,)

    def like(self, *arguments: Tensor | None) -> list[Tensor | None]:
        """All three in the precision of x, weight and bias."""
        pairs = zip((self.x, self.weight, self.bias), arguments, strict=True)
        return [None if g is None or a is None else g.to(a.dtype) for g, a in pairs]


def _losses_and_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: _Head,
    shares: Tensor | None = None,
    needs: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Tensor, _Gradients]:
    """Losses (N, M) of targets (N, M) and, as `needs` asks of (x, weight, bias), gradients of
    sum_im shares_im loss_im."""
    given = x.shape[0]
    more = -given % row_multiple(x.device, head.dtype)
    if more:  # tokens of no weight
        x, targets = (F.pad(rows, (0, 0, 0, more)) for rows in (x, targets))
        shares = None if shares is None else F.pad(shares, (0, 0, 0, more))
    num_tokens, vocab_size = x.shape[0], weight.shape[0]
    accumulator = wide_dtype(x)
    is_float16 = head.dtype == torch.float16
    losses = torch.empty(targets.shape, dtype=accumulator, device=x.device)
    # What a token's targets share in its weight: None where there is one, which has all of it.
    parts: Tensor | None = None
    if shares is not None:
        totals = shares.sum(1, keepdim=True)  # (N, 1)
        if targets.shape[1] > 1:
            parts = shares / torch.where(totals == 0, 1, totals)
    held_dtype = accumulator if is_float16 else x.dtype
    grads = _Gradients(x=torch.empty_like(x, dtype=held_dtype) if needs[0] else None)
    inputs, matrix = x.to(head.dtype), cast_once(weight, head.dtype)
    offset = None if bias is None else cast_once(bias, head.dtype)
    # Rows that start on 128-byte boundaries let a GPU load and multiply them in full vectors.
    row_stride = vocab_size if head.backend == "torch" else math.ceil(vocab_size / 64) * 64
    buffer = inputs.new_empty(min(head.chunk_size, num_tokens), row_stride)
    softmax_step = softmax_step_torch if head.backend == "torch" else softmax_step_triton

    for start in range(0, num_tokens, head.chunk_size):
        rows = slice(start, min(start + head.chunk_size, num_tokens))
        features = inputs[rows]  # (C, D)
        logits = buffer[: features.shape[0], :vocab_size]  # (C, V)
        if offset is None:
            torch.mm(features, matrix.mT, out=logits)
        else:
            torch.addmm(offset, features, matrix.mT, out=logits)
        losses[rows], norm = softmax_step(
            logits,
            targets[rows],
            None if parts is None else parts[rows],
            softcap=head.softcap,
            normalised=head.normalised,
            with_gradient=any(needs),
        )
        if not any(needs):
            continue
        # `logits` now hold their gradient but for a factor per row, which costs less on D features
        # than on V logits.
        assert shares is not None
        scale = totals[rows] / norm  # (C, 1)
        if grads.x is not None:
            torch.mul(torch.mm(logits, matrix), scale, out=grads.x[rows])
        if needs[1]:
            scaled = features * scale  # (C, D)
            if grads.weight is None:
                grads.weight = _product(logits, scaled).to(accumulator)  # (V, D)
            elif head.dtype == accumulator:
                grads.weight.addmm_(logits.mT, scaled)
            else:
                grads.weight.add_(_product(logits, scaled))
        if needs[2]:
            if is_float16:
                product = _product(logits, scale)[:, 0]
            else:
                product = torch.mv(logits.mT, scale[:, 0].to(head.dtype)).to(accumulator)  # (V,)
            grads.bias = product if grads.bias is None else grads.bias.add_(product)

    if needs[1]:
        grads.weight = _or_zeros(grads.weight, weight, is_float16=is_float16)
    if needs[2]:
        assert bias is not None
        grads.bias = _or_zeros(grads.bias, bias, is_float16=is_float16)
    if grads.x is not None:
        grads.x = grads.x[:given]
    return losses[:given], grads


def _product(logits: Tensor, rows: Tensor) -> Tensor:
    """(V, K), the transposed `logits` (C, V) times `rows` (C, K), which become as precise as they.

    In float16, of logits within +-FLOAT16_SCALE, the rows are scaled so that no sum can leave the
    range; the product comes back as float32, unscaled.
    """
    if logits.dtype != torch.float16:
        return torch.mm(logits.mT, rows.to(logits.dtype))
    largest_sum = FLOAT16_SCALE * rows.abs().amax(1).sum()
    factor = (2.0**15 / largest_sum).clamp(max=2.0**100)  # of rows that are 0 it would be infinite
    return torch.mm(logits.mT, (rows * factor).to(logits.dtype)).to(rows.dtype) / factor


def _or_zeros(gradient: Tensor | None, like: Tensor, *, is_float16: bool) -> Tensor:
    if gradient is None:
        return torch.zeros_like(like)
    return gradient if is_float16 else gradient.to(like.dtype)


class _SummedLoss(torch.autograd.Function):
    """sum_im shares_im loss_im, whose gradients are ready when the forward pass ends, and all
    losses (N, M), which have none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shares: Tensor, targets: Tensor,
        head: _Head, with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        needs = ctx.needs_input_grad[:3] if with_gradient else (False, False, False)
        losses, ctx.grads = _losses_and_gradients(x, weight, bias, targets, head, shares, needs)
        ctx.head = head
        ctx.save_for_backward(x, weight, bias, shares, targets, losses)
        ctx.mark_non_differentiable(losses)
        return torch.dot(losses.flatten(), shares.flatten()), losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, weight, bias, shares, targets, losses = ctx.saved_tensors
        # Handing the buffers over, rather than keeping them, lets autograd use them as .grad.
        grads, ctx.grads = ctx.grads, None
        if grads is None:  # a retained graph, walked again
            needs = ctx.needs_input_grad[:3]
            _, grads = _losses_and_gradients(x, weight, bias, targets, ctx.head, shares, needs)
        # Looking at a value is free on the CPU only.
        if upstream.device.type != "cpu" or upstream.item() != 1:
            for gradient in (grads.x, grads.weight, grads.bias):
                if gradient is not None:
                    gradient.mul_(upstream)
        share_grads = losses * upstream if ctx.needs_input_grad[3] else None
        return *grads.like(x, weight, bias), share_grads, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Every token's loss; the backward pass makes each chunk of logits again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: _Head
    ) -> Tensor:
        ctx.head = head
        ctx.save_for_backward(x, weight, bias, targets)
        return _losses_and_gradients(x, weight, bias, targets, head)[0][:, 0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, weight, bias, targets = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        shares = upstream[:, None]
        _, grads = _losses_and_gradients(x, weight, bias, targets, ctx.head, shares, needs)
        return *grads.like(x, weight, bias), None, None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # the mark of create_graph=True
        raise RuntimeError(
            "linear_cross_entropy has no second derivative; differentiate "
            "linear_cross_entropy_reference instead"
        )


# -- choices and checks ---------------------------------------------------------------------------


def _default_backend(x: Tensor) -> Backend:
    has_triton = triton is not None and x.is_cuda and x.dtype != torch.float64
    return "triton" if has_triton else "torch"


def _chunk_size(x: Tensor, weight: Tensor, asked: int | None, dtype: torch.dtype) -> int:
    """Tokens per chunk, all chunks being about equally long.

    On the CPU a short chunk of logits (4 MiB) stays near the core, but each chunk also reads the
    weight twice and adds to its gradient: where these do not fit a cache, or where products in half
    precision leave little time for them, 512 tokens or 4 M logits keep that traffic small beside
    the products. Above all, a chunk holds at most 128 MiB.
    """
    num_tokens, vocab_size = x.shape[0], weight.shape[0]
    if asked is not None:
        return asked
    if x.device.type == "cpu":
        size = 2**20 // vocab_size
        if weight.numel() > 2**19 or dtype.itemsize == 2:
            size = max(2**22 // vocab_size, min(512, 2**25 // vocab_size))
    else:
        size = 2**27 // vocab_size
    num_chunks = math.ceil(num_tokens / max(1, size))
    multiple = row_multiple(x.device, dtype)
    size = math.ceil(num_tokens / max(1, num_chunks))
    return math.ceil(size / multiple) * multiple or 1


def _check(
    x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, token_weight: Tensor | None,
    softcap: float | None, reduction: str, chunk_size: int | None,
) -> None:  # fmt: skip
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be (N, D) and (V, D)"
        )
    num_tokens, vocab_size = x.shape[0], weight.shape[0]
    if targets.shape != (num_tokens,) or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be ({num_tokens},) int64, not {tuple(targets.shape)} {targets.dtype}"
        )
    if bias is not None and bias.shape != (vocab_size,):
        raise ValueError(f"bias must be ({vocab_size},), not {tuple(bias.shape)}")
    if token_weight is not None and token_weight.shape != (num_tokens,):
        raise ValueError(f"token_weight must be ({num_tokens},), not {tuple(token_weight.shape)}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap={softcap} must be positive or None")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} must be 'mean', 'sum' or 'none'")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1 or None")
    if targets.device.type == "cpu" and num_tokens > 0:
        low, high = (int(end) for end in targets.aminmax())
        if low < 0 or high >= vocab_size:
            raise IndexError(
                f"targets range over {low} .. {high}, the vocabulary over 0 .. {vocab_size - 1}; "
                "give a token that must not count a legal target and token_weight 0"
            )
