"""The Triton kernels of the SSD scan, forward and backward; `ssd_triton.py` launches them.

Four products carry both directions; the backward pass is the same recurrence run from the end with
b and c exchanged, so three of the kernels serve twice:

    chunk_writes   what each chunk adds to the state       (backward: to the state's gradient)
    pass_states    the recurrence over chunks              (backward: in reverse)
    mix            reads of the incoming state and of the chunk itself  (backward: of the inputs)
    pair_sums, vector_gradients   gradients of b and c, summed over heads without atomics

Matrices of pairs of positions exist only as tiles, but for one (Q, Q) per chunk in the backward
pass. Memory traffic is that of x, y and of the states between chunks, H P N floats per chunk.

Shapes: B batch, L sequence, H heads, P channels of a head, N state size, Q positions of a chunk,
M chunks, T positions of a tile.
Reference: arXiv 2405.21060, section 6.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _offset(index, stride):
    return index.to(tl.int64) * stride


@triton.jit
def chunk_writes(
    values,  # (B, L, H, P)
    scale,  # (B, H, M Q)
    vectors,  # (B, L, N)
    states,  # (B, M + 1, H, P, N) out: slot m of the first M
    length, num_chunks, num_heads,
    value_batch, value_time, value_head, vector_batch, vector_time,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    TILE_T: tl.constexpr, TILE_P: tl.constexpr, TILE_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
def pass_states(
    states,  # (B, M + 1, H, P N), in place: slots 0 .. M-1 hold what each chunk adds
    boundary,  # (B, H, P N): the state before the first chunk, or behind the last in reverse
    through,  # (B, H, M)
    num_chunks, num_heads,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
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
def mix(
    query, key,  # (B, L, N)
    value,  # (B, L, H, P)
    weight,  # (B, H, M Q): of each value
    states,  # (B, M + 1, H, P, N)
    scale,  # (B, H, M Q): of what each position reads from the state
    cumulated,  # (B, H, M Q)
    runs,  # (B, M Q)
    factor,  # (B, H, M Q): of the mixed values in the result
    skip,  # (H,)
    direct, partner,  # (B, L, H, P)
    result,  # (B, L, H, P) out
    dots, direct_dots,  # (B, H, M Q) out
    length, num_chunks, num_heads,
    query_batch, query_time, key_batch, key_time, value_batch, value_time, value_head,
    direct_batch, direct_time, direct_head, partner_batch, partner_time, partner_head,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    TILE_T: tl.constexpr, TILE_P: tl.constexpr, TILE_N: tl.constexpr,
    REVERSE: tl.constexpr, HAS_RESULT: tl.constexpr, HAS_DOTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
def pair_sums(
    gradient, value,  # (B, L, H, P)
    weight, cumulated,  # (B, H, M Q)
    runs,  # (B, M Q)
    pairs,  # (B, M, Q, Q) out: tiles on and below the diagonal
    length, num_chunks, num_heads,
    gradient_batch, gradient_time, gradient_head, value_batch, value_time, value_head,
    P: tl.constexpr, Q: tl.constexpr, TILE_T: tl.constexpr, TILE_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
def vector_gradients(
    values,  # (B, L, H, P)
    scale,  # (B, H, M Q)
    states,  # (B, M + 1, H, P, N)
    pairs,  # (B, M, Q, Q)
    vectors,  # (B, L, N)
    result,  # (B, L, N) out
    length, num_chunks, num_heads,
    value_batch, value_time, value_head, vector_batch, vector_time,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    TILE_T: tl.constexpr, TILE_P: tl.constexpr, TILE_N: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
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
