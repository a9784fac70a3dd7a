"""SSD, the linear recurrence of Mamba-2: one decay per head, a matrix-valued state.

    h_t = exp(log_decay_t) h_{t-1} + delta_t x_t b_t^T        y_t = h_t c_t + skip x_t

The reference (`ssd_reference`) and the fast torch form (`ssd_chunked`) are here; the Triton twin is
launched by `ssd_triton.py`, its kernels are in `ssd_kernels.py`.

Shapes: B batch, L sequence, H heads, P channels of a head, N state size, Q positions of a chunk,
M chunks, G groups of heads that share b and c.
Reference: arXiv 2405.21060, eq. 16-18 (recurrence), section 6 (blocks).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.ops.backend import Backend, check_shapes, segment_starts, use_triton


def ssd(
    x: Tensor, delta: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, *,
    skip: Tensor | None = None, initial_state: Tensor | None = None,
    segments: Tensor | None = None, chunk_size: int = 64, backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Runs the recurrence over a whole sequence, differentiably in every real argument.

    Args:
        x: (B, L, H, P), any floating type.
        delta: (B, L, H) step sizes; 0 with log_decay 0 leaves the state as it is (padding).
        log_decay: (B, L, H), finite and at most 0.
        b, c: (B, L, N) for all heads, or (B, L, G, N) for groups of H / G successive heads each.
        skip: (H,), or None for no direct path.
        initial_state: (B, H, P, N) before the first position, or None for zeros.
        segments: (B, L) integers; the state starts from zero wherever the number changes. The
            initial state belongs to the first segment.
        chunk_size: positions handled by one block of matrix products; a power of two. The best
            is near sqrt(P N); the result does not depend on it but for rounding.
        backend: auto is triton on CUDA and torch elsewhere.

    Returns: y (B, L, H, P) of x's type, and the last state (B, H, P, N) in float32. Decays and
        states are float32 whatever the inputs (float64 if x is).
    Raises: ValueError when the shapes do not fit, or triton is asked for where it cannot run.
    """
    _check_shapes(x, delta, log_decay, b, c, skip, initial_state, segments)
    if b.dim() == 4:
        sequences = (x, delta, log_decay, b, c)
        y, last = _ssd_in_groups(sequences, initial_state, segments, chunk_size, backend)
        return y if skip is None else (y + skip[:, None] * x).to(x.dtype), last
    if skip is None:
        skip = torch.zeros(x.shape[2], dtype=wide_dtype(x), device=x.device)
    if initial_state is None:
        initial_state = _zero_state(x, b)
    tensors = (x, delta, log_decay, b, c, skip, initial_state)
    if use_triton(backend, x):
        from nanozoo_core.ops.ssd_triton import ssd_triton as scan
    else:
        scan = ssd_chunked
    with torch.autocast(x.device.type, enabled=False):  # the products stay float32
        return scan(tensors, segments, chunk_size)


def _ssd_in_groups(
    sequences: tuple[Tensor, ...],
    initial_state: Tensor | None,
    segments: Tensor | None,
    chunk_size: int,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """`ssd` without skip, with a group of heads in place of a row of the batch."""
    *by_head, b, c = sequences
    groups = b.shape[2]

    def fold(t: Tensor) -> Tensor:
        """(B, L, H, ..) -> (B G, L, H / G, ..)."""
        return t.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)

    if initial_state is not None:
        initial_state = initial_state.unflatten(1, (groups, -1)).flatten(0, 1)
    y, last = ssd(
        *(fold(t) for t in by_head),
        *(t.transpose(1, 2).flatten(0, 1) for t in (b, c)),
        initial_state=initial_state,
        segments=None if segments is None else segments.repeat_interleave(groups, 0),
        chunk_size=chunk_size,
        backend=backend,
    )
    y = y.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3)
    return y, last.unflatten(0, (-1, groups)).flatten(1, 2)


def ssd_step(
    state: Tensor, x: Tensor, delta: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, *,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One position of the recurrence.

    Args:
        state: (B, H, P, N) float32.
        x: (B, H, P); delta, log_decay: (B, H); b, c: (B, N) or (B, G, N); skip: (H,) or None.

    Returns: y (B, H, P) of x's type and the new state.
    """
    if b.dim() == 2:
        b, c = b[:, None], c[:, None]  # (B, 1, N)
    else:
        b, c = (t.repeat_interleave(x.shape[1] // t.shape[1], dim=1) for t in (b, c))  # (B, H, N)
    inputs = (delta.to(state.dtype)[..., None] * x)[..., None] * b[:, :, None]
    state = torch.exp(log_decay.to(state.dtype))[..., None, None] * state + inputs  # (B, H, P, N)
    y = (state * c[:, :, None]).sum(-1)  # (B, H, P)
    if skip is not None:
        y = y + skip[:, None] * x
    return y.to(x.dtype), state


def ssd_reference(
    x: Tensor, delta: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, *,
    skip: Tensor | None = None, initial_state: Tensor | None = None, segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence as it is written, one position after the other; arguments as in `ssd`."""
    dtype = wide_dtype(x)
    state = _zero_state(x, b) if initial_state is None else initial_state.to(dtype)
    # unbind, not indexing: the backward of x[:, t] fills a zero tensor of x's size for every t.
    per_position = [tensor.to(dtype).unbind(1) for tensor in (x, delta, log_decay, b, c)]
    keeps = None if segments is None else segment_starts(segments).logical_not().to(dtype).unbind(1)
    ys = []
    for t, inputs in enumerate(zip(*per_position, strict=True)):
        if keeps is not None:
            state = state * keeps[t][:, None, None, None]
        y, state = ssd_step(state, *inputs, skip=skip)
        ys.append(y)
    return torch.stack(ys, dim=1).to(x.dtype), state


def ssd_chunked(
    tensors: tuple[Tensor, ...], segments: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """`ssd` as matrix products inside chunks and a short recurrence between them, in plain torch
    with a hand-written backward pass (differentiable once).

    Args: tensors: x, delta, log_decay, b, c, skip and initial_state, all given.
    """
    x = tensors[0]
    runs = None if segments is None else segment_starts(segments).cumsum(1)
    widened = (t.to(wide_dtype(x)) for t in tensors)
    y, state = _ChunkedSSD.apply(*widened, runs, chunk_size)
    return y.to(x.dtype), state


def _zero_state(x: Tensor, b: Tensor) -> Tensor:
    batch, _, heads, channels = x.shape
    shape = (batch, heads, channels, b.shape[-1])
    return torch.zeros(shape, dtype=wide_dtype(x), device=x.device)


class _ChunkedSSD(torch.autograd.Function):
    """One chunk after the other, so that a chunk's intermediates stay in cache; the backward pass
    recomputes them from the states between chunks. Takes 0.55 to 0.7 of the CPU time of the same
    products over all chunks at once under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, skip: Tensor,
        initial_state: Tensor, runs: Tensor | None, chunk_size: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        heads, channels = x.shape[2:]
        chunks = _chunks(x.shape[1], chunk_size)
        states = x.new_empty(len(chunks) + 1, *initial_state.shape)  # (M + 1, B, H, P, N)
        states[0] = initial_state
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        wide_skip = skip.repeat_interleave(channels).unflatten(0, (heads, channels))
        for m, at in enumerate(chunks):
            x_m, delta_m, b_m, c_m, state = x[:, at], delta[:, at], b[:, at], c[:, at], states[m]
            decays = _decays(log_decay, runs, at)
            scores = decays.within.mul_((c_m @ b_m.mT)[:, None])  # (B, H, Q, Q)
            inside = scores @ _head_major(x_m, delta_m)  # (B, H, Q, P)
            y_m = (c_m @ state.flatten(1, 2).mT).unflatten(2, (heads, channels))  # (B, Q, H, P)
            y_m.mul_(decays.from_start[..., None]).add_(inside.transpose(1, 2))
            torch.addcmul(y_m, x_m, wide_skip, out=y[:, at])
            writes = x_m * (delta_m * decays.to_end)[..., None]  # (B, Q, H, P)
            torch.mul(state, decays.through[..., None, None], out=states[m + 1])
            states[m + 1].flatten(1, 2).baddbmm_(writes.flatten(2).mT, b_m)
        ctx.save_for_backward(x, delta, log_decay, b, c, skip, runs, states, y)
        ctx.chunks = chunks
        return y, states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, log_decay, b, c, skip, runs, states, y = ctx.saved_tensors
        heads, channels = x.shape[2:]
        wide_skip = skip.repeat_interleave(channels).unflatten(0, (heads, channels))
        grad_x, grad_delta, grad_log, grad_b, grad_c, grad_skip = (
            torch.empty_like(t) for t in (x, delta, log_decay, b, c, skip)
        )
        grad_skip.zero_()
        for m, at in reversed(list(enumerate(ctx.chunks))):
            x_m, delta_m, b_m, c_m, gy = x[:, at], delta[:, at], b[:, at], c[:, at], grad_y[:, at]
            decays = _decays(log_decay, runs, at)
            gy_h = gy.transpose(1, 2).contiguous()  # (B, H, Q, P)

            # Through the scores of pairs of positions inside the chunk, (B, H, Q, Q).
            grad_scores = gy_h @ _head_major(x_m, delta_m).mT
            grad_products = grad_scores.mul_(decays.within).sum(1)  # (B, Q, Q): of c b^T
            scores = decays.within.mul_((c_m @ b_m.mT)[:, None])
            reads = (gy * decays.from_start[..., None]).flatten(2)  # (B, Q, H P)
            writes = (x_m * (delta_m * decays.to_end)[..., None]).flatten(2)
            state, later = states[m].flatten(1, 2), grad_state.flatten(1, 2)  # (B, H P, N)
            grad_c[:, at] = torch.baddbmm(reads @ state, grad_products, b_m)
            grad_b[:, at] = torch.baddbmm(writes @ later, grad_products.mT, c_m)

            grad_input = (b_m @ later.mT).unflatten(2, (heads, channels))  # of delta x
            grad_input.mul_(decays.to_end[..., None]).add_((scores.mT @ gy_h).transpose(1, 2))
            torch.mul(grad_input, delta_m[..., None], out=grad_x[:, at]).addcmul_(gy, wide_skip)
            grad_delta_m = grad_input.mul_(x_m).sum(-1)  # (B, Q, H)
            grad_delta[:, at] = grad_delta_m
            direct = (gy * x_m).sum(-1)
            grad_skip += direct.sum((0, 1))

            # The cumulated log decay of t scales what t reads (its output without the skip) and
            # divides what t writes; that of the last position scales the state handed on.
            grad_cumulated = (gy * y[:, at]).sum(-1) - skip * direct - delta_m * grad_delta_m
            grad_cumulated[:, -1] += (grad_state * states[m + 1]).sum((2, 3))
            grad_log[:, at] = grad_cumulated.flip(1).cumsum(1).flip(1)
            grad_state = grad_state * decays.through[..., None, None]
            grad_state.flatten(1, 2).baddbmm_(reads.mT, c_m)
        return grad_x, grad_delta, grad_log, grad_b, grad_c, grad_skip, grad_state, None, None


class _Decays(NamedTuple):
    """Factors exp(sum of log decays) of one chunk of Q positions, 0 across a reset."""

    within: Tensor  # (B, H, Q, Q): from the write at the second position to the read at the first
    from_start: Tensor  # (B, Q, H): of the incoming state, when a position reads it
    to_end: Tensor  # (B, Q, H): of a position's write, at the end of the chunk
    through: Tensor  # (B, H): of the incoming state, at the end of the chunk


def _decays(log_decay: Tensor, runs: Tensor | None, at: slice) -> _Decays:
    # On a CPU exp2 takes a third of the time of exp.
    cumulated = log_decay[:, at].cumsum(1).mul_(math.log2(math.e))  # (B, Q, H)
    from_start = cumulated.exp2()
    to_end = (cumulated[:, -1:] - cumulated).exp2_()
    through = from_start[:, -1].clone()
    by_head = cumulated.mT.contiguous()  # (B, H, Q)
    # exp2 overflows to inf above the diagonal; both masks write zeros there, they do not multiply.
    within = (by_head[..., :, None] - by_head[..., None, :]).exp2_()
    if runs is None:
        within.tril_()
    else:
        run, before = runs[:, at], runs[:, max(at.start - 1, 0), None]  # (B, Q), (B, 1)
        visible = (run[:, :, None] == run[:, None, :]).tril_()
        within.masked_fill_(~visible[:, None], 0.0)
        from_start *= (run == before)[..., None]
        to_end *= (run == run[:, -1:])[..., None]
        through *= run[:, -1:] == before
    return _Decays(within, from_start, to_end, through)


def _chunks(length: int, chunk_size: int) -> list[slice]:
    return [slice(start, min(start + chunk_size, length)) for start in range(0, length, chunk_size)]


def _head_major(x: Tensor, delta: Tensor) -> Tensor:
    """delta x of a chunk, (B, Q, H, P) -> (B, H, Q, P), in one pass."""
    x = x.transpose(1, 2)
    return torch.mul(x, delta.mT[..., None], out=x.new_empty(x.shape))


def _check_shapes(
    x: Tensor, delta: Tensor, log_decay: Tensor, b: Tensor, c: Tensor,
    skip: Tensor | None, initial_state: Tensor | None, segments: Tensor | None,
) -> None:  # fmt: skip
    if x.dim() != 4 or b.dim() not in (3, 4) or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and b {tuple(b.shape)}; want (B, L, H, P) and "
            "(B, L, N) or (B, L, G, N) with L >= 1"
        )
    batch, length, heads, channels = x.shape
    if b.dim() == 4 and heads % b.shape[2]:
        raise ValueError(f"the {b.shape[2]} groups of b do not divide the {heads} heads of x")
    vectors = (batch, length, *b.shape[2:])
    check_shapes(
        delta=(delta, (batch, length, heads)),
        log_decay=(log_decay, (batch, length, heads)),
        b=(b, vectors),
        c=(c, vectors),
        skip=(skip, (heads,)),
        initial_state=(initial_state, (batch, heads, channels, b.shape[-1])),
        segments=(segments, (batch, length)),
    )
