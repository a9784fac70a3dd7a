"""Triton kernels of the SSD scan, forward and backward.

Four products carry both directions; the backward pass is the same recurrence run from the end with
b and c exchanged, so three of the kernels serve twice:

    _chunk_writes   what each chunk adds to the state       (backward: to the state's gradient)
    _pass_states    the recurrence over chunks              (backward: in reverse)
    _mix            reads of the incoming state and of the chunk itself  (backward: of the inputs)
    _pair_sums, _vector_gradients   gradients of b and c, summed over heads without atomics

Matrices of pairs of positions exist only as tiles, but for one (Q, Q) per chunk in the backward
pass. Memory traffic is that of x, y and of the states between chunks, H P N floats per chunk.

Shapes: B batch, L sequence, H heads, P channels of a head, N state size, Q positions of a chunk,
M chunks, T positions of a tile.
Reference: arXiv 2405.21060, section 6.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


@triton.jit
def _offset(index, stride):
    return index.to(tl.int64) * stride


@triton.jit
def _chunk_writes(
    values,  # (B, L, H, P)
    scale,  # (B, H, M Q)
    vectors,  # (B, L, N)
    states,  # (B, M + 1, H, P, N) out: slot m of the first M
    length,
    num_chunks,
    num_heads,
    value_batch,
    value_time,
    value_head,
    vector_batch,
    vector_time,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """states[m] = sum_t scale_t values_t vectors_t^T over the positions of chunk m."""
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    head = tl.program_id(1)
    p = tl.arange(0, TILE_P)
    n = tl.program_id(2) * TILE_N + tl.arange(0, TILE_N)
    values += _offset(batch, value_batch) + head * value_head
    vectors += _offset(batch, vector_batch)
    scale += _offset(batch * num_heads + head, num_chunks * Q)
    total = tl.zeros((TILE_P, TILE_N), tl.float32)
    for start in range(0, Q, TILE_T):
        t = m * Q + start + tl.arange(0, TILE_T)
        value = tl.load(
            values + _offset(t, value_time)[None, :] + p[:, None],
            mask=(t < length)[None, :] & (p < P)[:, None],
            other=0.0,
        ).to(tl.float32)
        vector = tl.load(
            vectors + _offset(t, vector_time)[:, None] + n[None, :],
            mask=(t < length)[:, None] & (n < N)[None, :],
            other=0.0,
        ).to(tl.float32)
        value *= tl.load(scale + t)[None, :]
        total += tl.dot(value, vector, input_precision=PRECISION)
    states += _offset((batch * (num_chunks + 1) + m) * num_heads + head, P * N)
    tl.store(states + p[:, None] * N + n[None, :], total, mask=(p < P)[:, None] & (n < N)[None, :])


@triton.jit
def _pass_states(
    states,  # (B, M + 1, H, P N), in place: slots 0 .. M-1 hold what each chunk adds
    boundary,  # (B, H, P N): the state before the first chunk, or behind the last in reverse
    through,  # (B, H, M)
    num_chunks,
    num_heads,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Forward: slot m becomes the state before chunk m, slot M the last state. Reverse: slot m
    becomes the gradient of the state before chunk m, slot M is the given one."""
    batch, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    through += tl.program_id(0) * num_chunks
    state = tl.load(boundary + _offset(tl.program_id(0), SIZE) + i, mask=inside, other=0.0)
    stride = num_heads * SIZE
    states += _offset(batch * (num_chunks + 1), stride) + head * SIZE + i
    if REVERSE:
        tl.store(states + _offset(num_chunks, stride), state, mask=inside)
    for step in range(num_chunks):
        m = num_chunks - 1 - step if REVERSE else step
        slot = states + _offset(m, stride)
        added = tl.load(slot, mask=inside, other=0.0)
        if not REVERSE:
            tl.store(slot, state, mask=inside)
        state = tl.load(through + m) * state + added
        if REVERSE:
            tl.store(slot, state, mask=inside)
    if not REVERSE:
        tl.store(states + _offset(num_chunks, stride), state, mask=inside)


@triton.jit
def _decay(cumulated_t, cumulated_s, run_t, run_s, t, s):
    """exp(log decays after s up to t) for s <= t in the same run, else 0."""
    visible = (t >= s) & (run_t == run_s)
    return tl.exp(tl.where(visible, cumulated_t - cumulated_s, -float("inf")))


@triton.jit
def _mix(
    query,  # (B, L, N)
    key,  # (B, L, N)
    value,  # (B, L, H, P)
    weight,  # (B, H, M Q): of each value
    states,  # (B, M + 1, H, P, N)
    scale,  # (B, H, M Q): of what each position reads from the state
    cumulated,  # (B, H, M Q)
    runs,  # (B, M Q)
    factor,  # (B, H, M Q): of the mixed values in the result
    skip,  # (H,)
    direct,  # (B, L, H, P)
    partner,  # (B, L, H, P)
    result,  # (B, L, H, P) out
    dots,  # (B, H, M Q) out
    direct_dots,  # (B, H, M Q) out
    length,
    num_chunks,
    num_heads,
    query_batch,
    query_time,
    key_batch,
    key_time,
    value_batch,
    value_time,
    value_head,
    direct_batch,
    direct_time,
    direct_head,
    partner_batch,
    partner_time,
    partner_head,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_N: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_RESULT: tl.constexpr,
    HAS_DOTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """mixed_t = scale_t S query_t + sum_s decay(t, s) <query_t, key_s> weight_s value_s

    over s <= t of the chunk with S the state before it; in reverse over s >= t with S the gradient
    of the state behind it. Stores result = factor mixed + skip direct and, for gradients, the dots
    <mixed, partner> and <direct, partner>.
    """
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    head, tile = tl.program_id(1), tl.program_id(2)
    p = tl.arange(0, TILE_P)
    t = m * Q + tile * TILE_T + tl.arange(0, TILE_T)
    row = _offset(batch * num_heads + head, num_chunks * Q)
    query += _offset(batch, query_batch) + _offset(t, query_time)[:, None]
    key += _offset(batch, key_batch)
    value += _offset(batch, value_batch) + head * value_head
    slot = m + 1 if REVERSE else m
    states += _offset((batch * (num_chunks + 1) + slot) * num_heads + head, P * N)
    runs += _offset(batch, num_chunks * Q)
    real = (t < length)[:, None]
    inside = real & (p < P)[None, :]
    cumulated_t, run_t = tl.load(cumulated + row + t), tl.load(runs + t)

    mixed = tl.zeros((TILE_T, TILE_P), tl.float32)
    for start in range(0, N, TILE_N):
        n = start + tl.arange(0, TILE_N)
        q = tl.load(query + n[None, :], mask=real & (n < N)[None, :], other=0.0).to(tl.float32)
        state = tl.load(
            states + p[None, :] * N + n[:, None],
            mask=(p < P)[None, :] & (n < N)[:, None],
            other=0.0,
        )
        mixed += tl.dot(q, state, input_precision=PRECISION)
    mixed *= tl.load(scale + row + t)[:, None]

    first = tile if REVERSE else 0
    last = Q // TILE_T if REVERSE else tile + 1
    for other in range(first, last):
        s = m * Q + other * TILE_T + tl.arange(0, TILE_T)
        products = tl.zeros((TILE_T, TILE_T), tl.float32)
        for start in range(0, N, TILE_N):
            n = start + tl.arange(0, TILE_N)
            q = tl.load(query + n[None, :], mask=real & (n < N)[None, :], other=0.0)
            k = tl.load(
                key + _offset(s, key_time)[None, :] + n[:, None],
                mask=(s < length)[None, :] & (n < N)[:, None],
                other=0.0,
            )
            products += tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision=PRECISION)
        cumulated_s, run_s = tl.load(cumulated + row + s), tl.load(runs + s)
        if REVERSE:
            products *= _decay(
                cumulated_s[None, :],
                cumulated_t[:, None],
                run_s[None, :],
                run_t[:, None],
                s[None, :],
                t[:, None],
            )
        else:
            products *= _decay(
                cumulated_t[:, None],
                cumulated_s[None, :],
                run_t[:, None],
                run_s[None, :],
                t[:, None],
                s[None, :],
            )
        products *= tl.load(weight + row + s)[None, :]
        v = tl.load(
            value + _offset(s, value_time)[:, None] + p[None, :],
            mask=(s < length)[:, None] & (p < P)[None, :],
            other=0.0,
        ).to(tl.float32)
        mixed += tl.dot(products, v, input_precision=PRECISION)

    if HAS_RESULT:
        direct += _offset(batch, direct_batch) + head * direct_head
        d = tl.load(
            direct + _offset(t, direct_time)[:, None] + p[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        out = mixed * tl.load(factor + row + t)[:, None] + tl.load(skip + head) * d
        result += _offset(batch * length, num_heads * P) + head * P
        result += _offset(t, num_heads * P)[:, None] + p[None, :]
        tl.store(result, out.to(result.dtype.element_ty), mask=inside)
    if HAS_DOTS:
        partner += _offset(batch, partner_batch) + head * partner_head
        other_value = tl.load(
            partner + _offset(t, partner_time)[:, None] + p[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        tl.store(dots + row + t, tl.sum(mixed * other_value, 1))
        if HAS_RESULT:
            tl.store(direct_dots + row + t, tl.sum(d * other_value, 1))


@triton.jit
def _pair_sums(
    gradient,  # (B, L, H, P)
    value,  # (B, L, H, P)
    weight,  # (B, H, M Q)
    cumulated,  # (B, H, M Q)
    runs,  # (B, M Q)
    pairs,  # (B, M, Q, Q) out: tiles on and below the diagonal
    length,
    num_chunks,
    num_heads,
    gradient_batch,
    gradient_time,
    gradient_head,
    value_batch,
    value_time,
    value_head,
    P: tl.constexpr,
    Q: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """pairs[t, s] = sum over heads of decay(t, s) <gradient_t, value_s> weight_s: the gradient of
    <c_t, b_s>."""
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    if tl.program_id(2) > tl.program_id(1):  # above the diagonal
        return
    t_in = tl.program_id(1) * TILE_T + tl.arange(0, TILE_T)
    s_in = tl.program_id(2) * TILE_T + tl.arange(0, TILE_T)
    t, s = m * Q + t_in, m * Q + s_in
    p = tl.arange(0, TILE_P)
    gradient += _offset(batch, gradient_batch) + _offset(t, gradient_time)[:, None] + p[None, :]
    value += _offset(batch, value_batch) + _offset(s, value_time)[None, :] + p[:, None]
    runs += _offset(batch, num_chunks * Q)
    run_t, run_s = tl.load(runs + t)[:, None], tl.load(runs + s)[None, :]
    total = tl.zeros((TILE_T, TILE_T), tl.float32)
    for head in range(num_heads):
        row = _offset(batch * num_heads + head, num_chunks * Q)
        g = tl.load(
            gradient + head * gradient_head,
            mask=(t < length)[:, None] & (p < P)[None, :],
            other=0.0,
        ).to(tl.float32)
        v = tl.load(
            value + head * value_head,
            mask=(s < length)[None, :] & (p < P)[:, None],
            other=0.0,
        ).to(tl.float32)
        decay = _decay(
            tl.load(cumulated + row + t)[:, None],
            tl.load(cumulated + row + s)[None, :],
            run_t,
            run_s,
            t[:, None],
            s[None, :],
        )
        decay *= tl.load(weight + row + s)[None, :]
        total += decay * tl.dot(g, v, input_precision=PRECISION)
    pairs += _offset(tl.program_id(0), Q * Q) + t_in[:, None] * Q + s_in[None, :]
    tl.store(pairs, total)


@triton.jit
def _vector_gradients(
    values,  # (B, L, H, P)
    scale,  # (B, H, M Q)
    states,  # (B, M + 1, H, P, N)
    pairs,  # (B, M, Q, Q)
    vectors,  # (B, L, N)
    result,  # (B, L, N) out
    length,
    num_chunks,
    num_heads,
    value_batch,
    value_time,
    value_head,
    vector_batch,
    vector_time,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_N: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """result_t = sum over heads of scale_t values_t^T S + sum_s pairs[t, s] vectors_s: the gradient
    of c. In reverse, that of b: the transposed pairs, and S behind the chunk."""
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    tile = tl.program_id(1)
    t_in = tile * TILE_T + tl.arange(0, TILE_T)
    t = m * Q + t_in
    p = tl.arange(0, TILE_P)
    n = tl.program_id(2) * TILE_N + tl.arange(0, TILE_N)
    values += _offset(batch, value_batch) + _offset(t, value_time)[:, None] + p[None, :]
    slot = m + 1 if REVERSE else m
    states += _offset((batch * (num_chunks + 1) + slot) * num_heads, P * N)
    states += p[:, None] * N + n[None, :]
    vectors += _offset(batch, vector_batch) + n[None, :]
    pairs += _offset(tl.program_id(0), Q * Q)
    total = tl.zeros((TILE_T, TILE_N), tl.float32)
    for head in range(num_heads):
        value = tl.load(
            values + head * value_head, mask=(t < length)[:, None] & (p < P)[None, :], other=0.0
        ).to(tl.float32)
        value *= tl.load(scale + _offset(batch * num_heads + head, num_chunks * Q) + t)[:, None]
        state = tl.load(states + head * P * N, mask=(p < P)[:, None] & (n < N)[None, :], other=0.0)
        total += tl.dot(value, state, input_precision=PRECISION)
    first = tile if REVERSE else 0
    last = Q // TILE_T if REVERSE else tile + 1
    for other in range(first, last):
        s_in = other * TILE_T + tl.arange(0, TILE_T)
        s = m * Q + s_in
        if REVERSE:
            pair = tl.load(pairs + s_in[None, :] * Q + t_in[:, None])
        else:
            pair = tl.load(pairs + t_in[:, None] * Q + s_in[None, :])
        vector = tl.load(
            vectors + _offset(s, vector_time)[:, None],
            mask=(s < length)[:, None] & (n < N)[None, :],
            other=0.0,
        ).to(tl.float32)
        total += tl.dot(pair, vector, input_precision=PRECISION)
    result += _offset(batch * length, N) + _offset(t, N)[:, None] + n[None, :]
    tl.store(
        result,
        total.to(result.dtype.element_ty),
        mask=(t < length)[:, None] & (n < N)[None, :],
    )


def ssd_triton(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    skip: Tensor | None = None,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
    chunk_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """The scan on a GPU: arguments and results as in `ssd`. x, b and c may be views of a larger
    tensor (their last stride must be 1, or they are copied).

    Raises: ValueError when chunk_size is not a power of two from 16 up.
    """
    if chunk_size < 16 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size={chunk_size} must be a power of two from 16 up")
    batch, length, heads, channels = x.shape
    if skip is None:
        skip = torch.zeros(heads, device=x.device)
    if initial_state is None:
        initial_state = torch.zeros(batch, heads, channels, b.shape[-1], device=x.device)
    runs = torch.zeros(batch, length, dtype=torch.int32, device=x.device)
    if segments is not None:
        runs[:, 1:] = (segments[:, 1:] != segments[:, :-1]).cumsum(1)
    y, states = _SSD.apply(
        *(t if t.stride(-1) == 1 else t.contiguous() for t in (x, b, c)),
        *(t.float() for t in (delta, log_decay, skip, initial_state)),
        runs,
        chunk_size,
    )
    return y, states


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        y, states = _forward(x, b, c, *rest)
        delta, log_decay, skip, _, runs, chunk_size = rest
        ctx.save_for_backward(x, b, c, delta, log_decay, skip, runs, states)
        ctx.chunk_size = chunk_size
        return y, states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        grads = _backward(
            grad_y.contiguous(), grad_state.contiguous(), *ctx.saved_tensors, ctx.chunk_size
        )
        return (*grads, None, None)


class _Positions(NamedTuple):
    """Per-position factors of all chunks, each (B, H, M Q) float32; padding neither writes, reads
    nor decays."""

    delta: Tensor
    cumulated: Tensor  # log decays from the start of the chunk up to and with the position
    from_start: Tensor  # of the incoming state, when the position reads it
    to_end: Tensor  # of the position's write, at the end of the chunk
    through: Tensor  # (B, H, M): of the incoming state, at the end of the chunk
    runs: Tensor  # (B, M Q) int32


def _positions(delta: Tensor, log_decay: Tensor, runs: Tensor, chunk_size: int) -> _Positions:
    pad = -delta.shape[1] % chunk_size
    delta = F.pad(delta.mT, (0, pad)).contiguous()
    log_decay = F.pad(log_decay.mT, (0, pad)).unflatten(2, (-1, chunk_size))  # (B, H, M, Q)
    runs = torch.cat([runs, runs[:, -1:].expand(-1, pad)], dim=1)  # (B, M Q)
    run = runs.unflatten(1, (-1, chunk_size))[:, None]  # (B, 1, M, Q)
    last = run[..., -1:]
    before = F.pad(last[:, :, :-1], (0, 0, 1, 0))  # run 0 holds position 0 and the initial state
    cumulated = log_decay.cumsum(3)
    total = cumulated[..., -1:]
    return _Positions(
        delta=delta,
        cumulated=cumulated.flatten(2),
        from_start=(cumulated.exp() * (run == before)).flatten(2),
        to_end=((total - cumulated).exp() * (run == last)).flatten(2),
        through=(total.exp() * (last == before)).flatten(2),
        runs=runs.contiguous(),
    )


class _Launch:
    """Grids, tile sizes and strides of one problem.

    Products of 16-bit inputs run in TF32 (10 bits of mantissa, more than the inputs have), those of
    float32 in three TF32 products, which need twice the registers. With 8 warps and 2 stages, tiles
    of 64 or 32 positions and 64 of N fit an sm_90 thread's 255 registers up to P = 64, N = 128 (no
    spills in 16 bits, at most 44 bytes in float32, as ptxas reports). P stays whole.
    """

    def __init__(self, x: Tensor, b: Tensor, chunk_size: int) -> None:
        self.batch, self.length, self.heads, self.channels = x.shape
        self.state_dim = b.shape[-1]
        self.chunks = triton.cdiv(self.length, chunk_size)
        self.chunk_size = chunk_size
        self.tile_n = min(64, max(16, triton.next_power_of_2(self.state_dim)))
        tile_t = min(32 if x.dtype == torch.float32 else 64, chunk_size)
        self.tiles_t = chunk_size // tile_t
        self.tiles_n = triton.cdiv(self.state_dim, self.tile_n)
        self.sizes = (self.length, self.chunks, self.heads)
        self.constants: dict[str, Any] = {
            "P": self.channels,
            "Q": chunk_size,
            "TILE_T": tile_t,
            "TILE_P": max(16, triton.next_power_of_2(self.channels)),
            "PRECISION": "tf32x3" if x.dtype == torch.float32 else "tf32",
            "num_warps": 8,
            "num_stages": 2,
        }
        self.state_constants = self.constants | {"N": self.state_dim, "TILE_N": self.tile_n}

    def empty_states(self, like: Tensor) -> Tensor:
        shape = (self.batch, self.chunks + 1, self.heads, self.channels, self.state_dim)
        return torch.empty(shape, device=like.device, dtype=torch.float32)

    def scan(
        self,
        values: Tensor,
        scale: Tensor,
        vectors: Tensor,
        boundary: Tensor,
        through: Tensor,
        *,
        reverse: bool,
    ) -> Tensor:
        """The states between chunks, or their gradients, (B, M + 1, H, P, N)."""
        states = self.empty_states(values)
        _chunk_writes[(self.batch * self.chunks, self.heads, self.tiles_n)](
            values,
            scale,
            vectors,
            states,
            *self.sizes,
            *values.stride()[:3],
            *vectors.stride()[:2],
            **self.state_constants,
        )
        size = self.channels * self.state_dim
        _pass_states[(self.batch * self.heads, triton.cdiv(size, 1024))](
            states,
            boundary.contiguous(),
            through,
            self.chunks,
            self.heads,
            SIZE=size,
            BLOCK=1024,
            REVERSE=reverse,
        )
        return states

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        states: Tensor,
        scale: Tensor,
        at: _Positions,
        *,
        factor: Tensor | None = None,
        skip: Tensor | None = None,
        direct: Tensor | None = None,
        partner: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """`_mix`: the result if `direct` is given, and the two dots if `partner` is."""
        result = None
        if direct is not None:
            result = torch.empty_like(direct, memory_format=torch.contiguous_format)
        dots, direct_dots = torch.empty_like(scale), torch.empty_like(scale)
        absent = scale  # stands for pointers that the kernel does not touch
        _mix[(self.batch * self.chunks, self.heads, self.tiles_t)](
            query,
            key,
            value,
            weight,
            states,
            scale,
            at.cumulated,
            at.runs,
            absent if factor is None else factor,
            absent if skip is None else skip,
            absent if direct is None else direct,
            absent if partner is None else partner,
            absent if result is None else result,
            dots,
            direct_dots,
            *self.sizes,
            *query.stride()[:2],
            *key.stride()[:2],
            *value.stride()[:3],
            *(value if direct is None else direct).stride()[:3],
            *(value if partner is None else partner).stride()[:3],
            REVERSE=reverse,
            HAS_RESULT=direct is not None,
            HAS_DOTS=partner is not None,
            **self.state_constants,
        )
        return result, dots, direct_dots

    def pair_sums(self, gradient: Tensor, value: Tensor, at: _Positions) -> Tensor:
        shape = (self.batch, self.chunks, self.chunk_size, self.chunk_size)
        pairs = torch.empty(shape, device=value.device, dtype=torch.float32)
        _pair_sums[(self.batch * self.chunks, self.tiles_t, self.tiles_t)](
            gradient,
            value,
            at.delta,
            at.cumulated,
            at.runs,
            pairs,
            *self.sizes,
            *gradient.stride()[:3],
            *value.stride()[:3],
            **self.constants,
        )
        return pairs

    def vector_gradients(
        self,
        values: Tensor,
        scale: Tensor,
        states: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        *,
        reverse: bool,
    ) -> Tensor:
        result = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        _vector_gradients[(self.batch * self.chunks, self.tiles_t, self.tiles_n)](
            values,
            scale,
            states,
            pairs,
            vectors,
            result,
            *self.sizes,
            *values.stride()[:3],
            *vectors.stride()[:2],
            REVERSE=reverse,
            **self.state_constants,
        )
        return result


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::ssd_forward", mutates_args=())
def _forward(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    skip: Tensor,
    initial_state: Tensor,
    runs: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) and the states before every chunk and behind the last, (B, M + 1, H, P, N)."""
    launch = _Launch(x, b, chunk_size)
    at = _positions(delta, log_decay, runs, chunk_size)
    states = launch.scan(x, at.delta * at.to_end, b, initial_state, at.through, reverse=False)
    one = torch.ones_like(at.delta)
    y, _, _ = launch.mix(
        c, b, x, at.delta, states, at.from_start, at, factor=one, skip=skip, direct=x
    )
    assert y is not None
    return y, states


@_forward.register_fake
def _(x, b, c, delta, log_decay, skip, initial_state, runs, chunk_size):
    batch, length, heads, channels = x.shape
    chunks = (length + chunk_size - 1) // chunk_size
    states = x.new_empty(batch, chunks + 1, heads, channels, b.shape[-1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), states


@torch.library.custom_op("nanozoo::ssd_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_state: Tensor,
    x: Tensor,
    b: Tensor,
    c: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    skip: Tensor,
    runs: Tensor,
    states: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, b, c, delta, log_decay, skip and the initial state."""
    launch = _Launch(x, b, chunk_size)
    at = _positions(delta, log_decay, runs, chunk_size)
    writes, one = at.delta * at.to_end, torch.ones_like(at.delta)
    grads = launch.scan(grad_y, at.from_start, c, grad_state, at.through, reverse=True)
    grad_x, grad_delta, direct = launch.mix(
        b,
        c,
        grad_y,
        one,
        grads,
        at.to_end,
        at,
        factor=at.delta,
        skip=skip,
        direct=grad_y,
        partner=x,
        reverse=True,
    )
    assert grad_x is not None
    pairs = launch.pair_sums(grad_y, x, at)
    grad_c = launch.vector_gradients(grad_y, at.from_start, states, pairs, b, reverse=False)
    grad_b = launch.vector_gradients(x, writes, grads, pairs, c, reverse=True)

    # The cumulated log decay of t scales what t reads and divides what t writes; that of the last
    # position scales the state handed on. What t reads is computed anew: y, rounded and with the
    # skip in it, would leave few digits.
    _, reads, _ = launch.mix(c, b, x, at.delta, states, at.from_start, at, partner=grad_y)
    grad_cumulated = (reads - at.delta * grad_delta).unflatten(2, (-1, chunk_size))
    handed_on = grads[:, 1:].flatten(3)[..., None, :] @ states[:, 1:].flatten(3)[..., None]
    grad_cumulated[..., -1] += handed_on.flatten(2).mT  # (B, H, M)
    grad_log = grad_cumulated.flip(3).cumsum(3).flip(3).flatten(2)

    length = x.shape[1]
    return (
        grad_x,
        grad_b,
        grad_c,
        grad_delta[..., :length].mT.contiguous(),
        grad_log[..., :length].mT.contiguous(),
        direct.sum((0, 2)),
        grads[:, 0].clone(),
    )


@_backward.register_fake
def _(grad_y, grad_state, x, b, c, delta, log_decay, skip, runs, states, chunk_size):
    tensors = (x, b, c, delta, log_decay, skip, grad_state)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)
