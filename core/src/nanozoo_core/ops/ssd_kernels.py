"""The Triton kernels of the SSD scan, forward and backward; `ssd_triton.py` launches them.

The backward pass is the same recurrence run from the end with b and c exchanged, so four of the
kernels serve twice:

    chunk_writes   what each chunk adds to the state       (backward: to the state's gradient)
    pass_states    the recurrence over chunks              (backward: in reverse)
    pair_products  c b^T, once for all heads               (backward: the same, read transposed)
    mix            reads of the incoming state and of the chunk itself  (backward: of the inputs)
    pair_sums, vector_gradients   gradients of b and c, summed over heads without atomics

Memory traffic is that of x, y, of the states between chunks, H P N floats per chunk, and of c b^T,
Q^2 floats per chunk, which the heads read from the second-level cache; the backward pass has one
more such matrix.

Products of bfloat16 run as such, with sums in float32. States, and what adds to them, are float32:
beside bfloat16 they count as two of it, a number and what it leaves, 16 bits of mantissa at the
price of TF32's 11. Products of float16, whose range states may leave, run in TF32.

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
    # An argument that is 1 is a constant to Triton, and has no type of its own.
    return tl.to_tensor(index).to(tl.int64) * stride


@triton.jit
def _operand(x, NARROW: tl.constexpr):
    """What was loaded, as products take it: bfloat16 where they are NARROW, else float32."""
    return x if NARROW else x.to(tl.float32)


@triton.jit
def halves(x):
    """float32 as a bfloat16 and what it leaves, another one."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _add_wide_narrow(total, wide, other, NARROW: tl.constexpr, PRECISION: tl.constexpr):
    """total + wide @ other, for wide in float32 and other an operand."""
    if NARROW:
        high, low = halves(wide)
        total = tl.dot(high, other, tl.dot(low, other, total))
    else:
        total = tl.dot(wide, other, total, input_precision=PRECISION)
    return total


@triton.jit
def _add_narrow_wide(total, other, wide, NARROW: tl.constexpr, PRECISION: tl.constexpr):
    """total + other @ wide, for wide in float32 and other an operand."""
    if NARROW:
        high, low = halves(wide)
        total = tl.dot(other, high, tl.dot(other, low, total))
    else:
        total = tl.dot(other, wide, total, input_precision=PRECISION)
    return total


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
    PRECISION: tl.constexpr, NARROW: tl.constexpr,
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
        )
        value *= tl.load(scale + t)[None, :]
        total = _add_wide_narrow(total, value, _operand(vector, NARROW), NARROW, PRECISION)
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
def pair_products(
    c, b,  # (B, L, N)
    products,  # (B, M, Q, Q) out: tiles on and below the diagonal
    length, num_chunks, c_batch, c_time, b_batch, b_time,
    N: tl.constexpr, Q: tl.constexpr, TILE_T: tl.constexpr, TILE_N: tl.constexpr,
    PRECISION: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """products[t, s] = <c_t, b_s> of the positions of a chunk."""
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    if tl.program_id(2) > tl.program_id(1):  # above the diagonal
        return
    t_in = tl.program_id(1) * TILE_T + tl.arange(0, TILE_T)
    s_in = tl.program_id(2) * TILE_T + tl.arange(0, TILE_T)
    t, s = m * Q + t_in, m * Q + s_in
    c += _offset(batch, c_batch) + _offset(t, c_time)[:, None]
    b += _offset(batch, b_batch) + _offset(s, b_time)[None, :]
    total = tl.zeros((TILE_T, TILE_T), tl.float32)
    for start in range(0, N, TILE_N):
        n = start + tl.arange(0, TILE_N)
        left = tl.load(c + n[None, :], mask=(t < length)[:, None] & (n < N)[None, :], other=0.0)
        right = tl.load(b + n[:, None], mask=(s < length)[None, :] & (n < N)[:, None], other=0.0)
        left, right = _operand(left, NARROW), _operand(right, NARROW)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    products += _offset(tl.program_id(0), Q * Q) + t_in[:, None] * Q + s_in[None, :]
    tl.store(products, total)


@triton.jit
def mix(
    query,  # (B, L, N)
    products,  # (B, M, Q, Q)
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
    query_batch, query_time, value_batch, value_time, value_head,
    direct_batch, direct_time, direct_head, partner_batch, partner_time, partner_head,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    TILE_T: tl.constexpr, TILE_P: tl.constexpr, TILE_N: tl.constexpr,
    REVERSE: tl.constexpr, HAS_RESULT: tl.constexpr, HAS_DOTS: tl.constexpr,
    PRECISION: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """mixed_t = scale_t S query_t + sum_s decay(t, s) products[t, s] weight_s value_s

    over s <= t of the chunk with S the state before it; in reverse over s >= t with products[s, t]
    and with S the gradient of the state behind it. Stores result = factor mixed + skip direct and,
    for gradients, the dots <mixed, partner> and <direct, partner>.
    """
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    head, tile = tl.program_id(1), tl.program_id(2)
    p = tl.arange(0, TILE_P)
    t_in = tile * TILE_T + tl.arange(0, TILE_T)
    t = m * Q + t_in
    row = _offset(batch * num_heads + head, num_chunks * Q)
    query += _offset(batch, query_batch) + _offset(t, query_time)[:, None]
    products += _offset(tl.program_id(0), Q * Q)
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
        q = tl.load(query + n[None, :], mask=real & (n < N)[None, :], other=0.0)
        state = tl.load(
            states + p[None, :] * N + n[:, None],
            mask=(p < P)[None, :] & (n < N)[:, None],
            other=0.0,
        )
        mixed = _add_narrow_wide(mixed, _operand(q, NARROW), state, NARROW, PRECISION)
    mixed *= tl.load(scale + row + t)[:, None]

    first = tile if REVERSE else 0
    last = Q // TILE_T if REVERSE else tile + 1
    for other in range(first, last):
        s_in = other * TILE_T + tl.arange(0, TILE_T)
        s = m * Q + s_in
        cumulated_s, run_s = tl.load(cumulated + row + s), tl.load(runs + s)
        if REVERSE:
            scores = tl.load(products + s_in[None, :] * Q + t_in[:, None])
            scores *= _decay(
                cumulated_s[None, :],
                cumulated_t[:, None],
                run_s[None, :],
                run_t[:, None],
                s[None, :],
                t[:, None],
            )
        else:
            scores = tl.load(products + t_in[:, None] * Q + s_in[None, :])
            scores *= _decay(
                cumulated_t[:, None],
                cumulated_s[None, :],
                run_t[:, None],
                run_s[None, :],
                t[:, None],
                s[None, :],
            )
        scores *= tl.load(weight + row + s)[None, :]
        v = tl.load(
            value + _offset(s, value_time)[:, None] + p[None, :],
            mask=(s < length)[:, None] & (p < P)[None, :],
            other=0.0,
        )
        v = _operand(v, NARROW)
        mixed = tl.dot(scores.to(v.dtype), v, mixed, input_precision=PRECISION)

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
    PRECISION: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """pairs[t, s] = sum over heads of decay(t, s) <gradient_t, value_s> weight_s: the gradient of
    <c_t, b_s>."""
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    if tl.program_id(2) > tl.program_id(1):  # above the diagonal
        return
    t_in = tl.program_id(1) * TILE_T + tl.arange(0, TILE_T)
    s_in = tl.program_id(2) * TILE_T + tl.arange(0, TILE_T)
    t, s = m * Q + t_in, m * Q + s_in
    gradient += _offset(batch, gradient_batch) + _offset(t, gradient_time)[:, None]
    value += _offset(batch, value_batch) + _offset(s, value_time)[None, :]
    runs += _offset(batch, num_chunks * Q)
    run_t, run_s = tl.load(runs + t)[:, None], tl.load(runs + s)[None, :]
    total = tl.zeros((TILE_T, TILE_T), tl.float32)
    for head in range(num_heads):
        row = _offset(batch * num_heads + head, num_chunks * Q)
        products = tl.zeros((TILE_T, TILE_T), tl.float32)
        for start in range(0, P, TILE_P):
            p = start + tl.arange(0, TILE_P)
            g = tl.load(
                gradient + head * gradient_head + p[None, :],
                mask=(t < length)[:, None] & (p < P)[None, :],
                other=0.0,
            )
            v = tl.load(
                value + head * value_head + p[:, None],
                mask=(s < length)[None, :] & (p < P)[:, None],
                other=0.0,
            )
            g, v = _operand(g, NARROW), _operand(v, NARROW)
            products = tl.dot(g, v, products, input_precision=PRECISION)
        decay = _decay(
            tl.load(cumulated + row + t)[:, None],
            tl.load(cumulated + row + s)[None, :],
            run_t,
            run_s,
            t[:, None],
            s[None, :],
        )
        total += decay * tl.load(weight + row + s)[None, :] * products
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
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """result_t = sum over heads of scale_t values_t^T S + sum_s pairs[t, s] vectors_s: the gradient
    of c. In reverse, that of b: the transposed pairs, and S behind the chunk."""
    batch, m = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    tile = tl.program_id(1)
    t_in = tile * TILE_T + tl.arange(0, TILE_T)
    t = m * Q + t_in
    n = tl.program_id(2) * TILE_N + tl.arange(0, TILE_N)
    values += _offset(batch, value_batch) + _offset(t, value_time)[:, None]
    slot = m + 1 if REVERSE else m
    states += _offset((batch * (num_chunks + 1) + slot) * num_heads, P * N)
    states += n[None, :]
    vectors += _offset(batch, vector_batch) + n[None, :]
    pairs += _offset(tl.program_id(0), Q * Q)
    total = tl.zeros((TILE_T, TILE_N), tl.float32)
    for head in range(num_heads):
        read = tl.zeros((TILE_T, TILE_N), tl.float32)
        for start in range(0, P, TILE_P):
            p = start + tl.arange(0, TILE_P)
            value = tl.load(
                values + head * value_head + p[None, :],
                mask=(t < length)[:, None] & (p < P)[None, :],
                other=0.0,
            )
            state = tl.load(
                states + (head * P + p)[:, None] * N,
                mask=(p < P)[:, None] & (n < N)[None, :],
                other=0.0,
            )
            read = _add_narrow_wide(read, _operand(value, NARROW), state, NARROW, PRECISION)
        place = _offset(batch * num_heads + head, num_chunks * Q) + t
        total += tl.load(scale + place)[:, None] * read
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
        )
        total = _add_wide_narrow(total, pair, _operand(vector, NARROW), NARROW, PRECISION)
    result += _offset(batch * length, N) + _offset(t, N)[:, None] + n[None, :]
    tl.store(
        result,
        total.to(result.dtype.element_ty),
        mask=(t < length)[:, None] & (n < N)[None, :],
    )
