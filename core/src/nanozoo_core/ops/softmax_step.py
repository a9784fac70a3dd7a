"""Between the two products of a head and its loss: logits in, losses and their gradient out.

Shapes: V vocabulary, M targets of a token, C tokens of a chunk, R tokens of a block.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import torch
from torch import Tensor

from nanozoo_core.ops.optional_triton import jit, tl, triton

# log sum_y u_y is held within this, so that the sum and its gradients stay finite in float32.
MAX_LOG_MASS = 60.0
# Logits in float16 hold this multiple of their gradient, whose entries lie within +-1: exact to 11
# bits down to 2^-20 in place of 2^-14, and none is lost above 2^-31.
FLOAT16_SCALE = 64.0


def softmax_step_torch(
    logits: Tensor, targets: Tensor, parts: Tensor | None, *,
    softcap: float | None, normalised: bool, with_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Losses (C, M) of logits (C, V), which become, row by row, `norm` (C, 1) times the gradient of
    their loss (or scratch, without gradient): of the mean of their losses by `parts` (C, M).

    Rows are taken in blocks of about 2 MiB, which stay in a core's cache through all six passes.
    """
    num_tokens, vocab_size = logits.shape
    accumulator = torch.promote_types(logits.dtype, torch.float32)
    losses = logits.new_empty(targets.shape, dtype=accumulator)
    norm = logits.new_empty(num_tokens, 1, dtype=accumulator)
    block_size = max(1, 2**19 // vocab_size) if logits.device.type == "cpu" else num_tokens
    # One block for all rows, since memory that was just used is in the cache.
    is_half = accumulator != logits.dtype
    wide = logits.new_empty(min(block_size, num_tokens) * is_half, vocab_size, dtype=accumulator)
    for start in range(0, num_tokens, block_size):
        rows = slice(start, start + block_size)
        z = logits[rows]  # (R, V)
        if is_half:
            z = wide[: len(z)].copy_(z)
        if softcap is not None:
            z.div_(softcap).tanh_()
            slope = 1 - z.square()
            z.mul_(softcap)
        target = targets[rows]  # (R, M)
        chosen = z.gather(1, target)
        top = z.amax(1, keepdim=True)
        z.sub_(top).exp_()
        total = torch.sum(z, 1, keepdim=True, out=norm[rows])
        if normalised:
            losses[rows] = top + total.log() - chosen
        else:
            log_size = math.log(vocab_size)
            log_mass = (top + total.log() - log_size).clamp(-MAX_LOG_MASS, MAX_LOG_MASS)
            losses[rows] = log_mass.expm1() + log_size - chosen
            total.div_(log_mass.exp())  # e^{z - top} over this is a logit's share of the mass
        if with_gradient:
            z.scatter_add_(1, target, -total if parts is None else -total * parts[rows])
            if softcap is not None:
                z.mul_(slope)
            if logits.dtype == torch.float16:  # `total`, up to V or beyond, may be out of its range
                z.mul_(FLOAT16_SCALE / total)
                total.fill_(FLOAT16_SCALE)
            if is_half:
                logits[rows] = z
    return losses, norm


# -- the same step as one Triton kernel -----------------------------------------------------------


@jit
def softmax_step_kernel(
    logits,  # (C, V) with rows `row_stride` apart
    targets,  # (C, M)
    parts,  # (C, M), or anything where M is 1
    losses,  # (C, M)
    vocab_size, row_stride, softcap,
    log_size,  # of the vocabulary
    MAX_LOG_MASS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, NORMALISED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, GRADIENT_SCALE: tl.constexpr, NUM_TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, two sweeps over it: the running maximum and sum of exponentials
    (Milakov and Gimelshein, arXiv 1805.02867), then the gradient in place. The second sweep
    finds the row (100 KiB for 50257 bfloat16 logits) in the L2 cache, so device memory sees one
    read and one write of the logits."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    targets += row * NUM_TARGETS
    parts += row * NUM_TARGETS
    losses += row * NUM_TARGETS
    columns = tl.arange(0, BLOCK)

    top = -float("inf")
    total = 0.0
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        z = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_SOFTCAP:
            z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
        z = tl.where(inside, z, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        top = new_top
    log_total = top + tl.log(total)
    log_norm = log_total  # of the exponentials, in a logit's gradient
    base = log_total
    if not NORMALISED:
        log_mass = log_total - log_size
        log_mass = tl.minimum(tl.maximum(log_mass, -MAX_LOG_MASS), MAX_LOG_MASS)
        log_norm = log_total - log_mass
        base = tl.exp(log_mass) - 1.0 + log_size

    for m in tl.static_range(NUM_TARGETS):
        target = tl.load(targets + m)
        is_legal = (target >= 0) & (target < vocab_size)
        chosen = tl.load(logits + target, mask=is_legal, other=0.0).to(tl.float32)
        if HAS_SOFTCAP:
            chosen = softcap * (2 * tl.sigmoid(2 * chosen / softcap) - 1)
        tl.store(losses + m, tl.where(is_legal, base - chosen, float("nan")))

    if WITH_GRADIENT:
        tl.debug_barrier()  # `chosen` is read before its place is overwritten
        for start in range(0, vocab_size, BLOCK):
            inside = start + columns < vocab_size
            z = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
            if HAS_SOFTCAP:
                t = 2 * tl.sigmoid(2 * z / softcap) - 1
                z = softcap * t
            gradient = tl.exp(z - log_norm)
            for m in tl.static_range(NUM_TARGETS):
                part = 1.0 if NUM_TARGETS == 1 else tl.load(parts + m)
                gradient -= tl.where(start + columns == tl.load(targets + m), part, 0.0)
            if HAS_SOFTCAP:
                gradient *= 1 - t * t
            if GRADIENT_SCALE != 1:
                gradient *= GRADIENT_SCALE
            tl.store(logits + start + columns, gradient.to(logits.dtype.element_ty), mask=inside)


def softmax_step_triton(
    logits: Tensor, targets: Tensor, parts: Tensor | None, *,
    softcap: float | None, normalised: bool, with_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `softmax_step_torch`; the kernel divides by the norm itself, so that a constant comes
    back."""
    scale = FLOAT16_SCALE if logits.dtype == torch.float16 else 1.0
    num_tokens, vocab_size = logits.shape
    losses = logits.new_empty(targets.shape, dtype=torch.float32)
    softmax_step_kernel[(num_tokens,)](
        logits,
        targets.contiguous(),
        losses if parts is None else parts.contiguous(),
        losses,
        vocab_size,
        logits.stride(0),
        1.0 if softcap is None else softcap,
        math.log(vocab_size),
        MAX_LOG_MASS=MAX_LOG_MASS,
        HAS_SOFTCAP=softcap is not None,
        NORMALISED=normalised,
        WITH_GRADIENT=with_gradient,
        GRADIENT_SCALE=scale,
        NUM_TARGETS=targets.shape[1],
        # 16 logits per thread: enough loads in flight, and no spilled registers.
        BLOCK=min(4096, triton.next_power_of_2(vocab_size)),
        num_warps=8,
    )
    return losses, losses.new_full((), scale)
