"""The Triton kernels of the selective scan; `selective_scan_triton.py` launches them.

A program walks over the tiles of T positions of one row and TILE_D channels. Inside a tile the
recurrence is an associative scan of pairs (decay, state); between tiles the last state is carried
in registers. Saved are the states before each tile, from which the backward pass, walking from the
end, makes the tile's states again. Softplus, bias, skip and gate are part of both.

Memory traffic: the forward pass reads x, delta, gate, b, c and writes y once, and N / T states for
each position and channel; nothing of size (B, L, D, N). For the gradients of b and c, which sum
over channels, a program of the backward pass takes several blocks of TILE_D channels, all of them
at each tile of positions. It writes one partial sum, N numbers for each position, and the partial
sums of a row's programs are added outside: no atomics, so that results repeat. What it carries from
tile to tile, numbers for each channel and state, waits in memory, near enough for the caches.

Shapes: B batch, L sequence, D channels, N state size, T positions of a tile, M tiles.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _then(decay, state, next_decay, next_state):
    """Two steps of the recurrence as one."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _at(pointer, start, step, column, time):
    """Where column of position start + step lies. Offsets within a tile are small, and so they are
    32 bits in registers; what may be large is one number."""
    return pointer + tl.cast(start, tl.int64) * time + (step[:, None] * time + column[None, :])


@triton.jit
def _step_sizes(
    delta, bias, start, step, channel, end, time, D: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """(T, TILE_D) float32; 0 at and behind `end`, where the state must stay as it is."""
    real = (start + step < end)[:, None] & (channel < D)[None, :]
    place = _at(delta, start, step, channel, time)
    steps = tl.load(place, mask=real, other=0.0).to(tl.float32)
    steps += tl.load(bias + channel, mask=channel < D, other=0.0)[None, :]
    if SOFTPLUS:
        # log(1 + e^s) = max(s, 0) + log(1 + e^-|s|), which for tiny e^-|s| = q is q itself.
        q = tl.exp(-tl.abs(steps))
        steps = tl.maximum(steps, 0.0) + tl.where(q < 1e-4, q - 0.5 * q * q, tl.log(1.0 + q))
    # The mask comes after softplus: softplus(0) is not 0.
    return tl.where(real, steps, 0.0)


@triton.jit
def _decays(steps, rates, runs, t, length):
    """exp(steps A), (T, TILE_D, N), 0 where a segment starts."""
    a = tl.exp2(steps[:, :, None] * (rates * LOG2_E)[None, :, :])
    run = tl.load(runs + t, mask=t < length, other=0)
    before = tl.load(runs + t - 1, mask=(t > 0) & (t - 1 < length), other=0)
    starts = (t > 0) & (t < length) & (run != before)
    return tl.where(starts[:, None, None], 0.0, a)


@triton.jit
def _rows(pointer, start, step, column, length, time, C: tl.constexpr):
    """Positions start + step of a (L, C) tensor, (T, columns) float32; 0 outside."""
    mask = (start + step < length)[:, None] & (column < C)[None, :]
    place = _at(pointer, start, step, column, time)
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(block, D: tl.constexpr, N: tl.constexpr, TILE_D: tl.constexpr, TILE_N: tl.constexpr):
    """Of a block of channels: which they are, where (channel, n) lies in a state, and masks of
    both."""
    channel, n = block * TILE_D + tl.arange(0, TILE_D), tl.arange(0, TILE_N)
    real = channel < D
    inside = real[:, None] & (n < N)[None, :]
    return channel, channel[:, None] * N + n[None, :], real, inside


@triton.jit
def scan(
    x, delta,  # (B, L, D)
    rates,  # (D, N)
    b, c,  # (B, L, N)
    skip,  # (D,)
    gate,  # (B, L, D)
    bias,  # (D,)
    initial,  # (B, D, N)
    runs,  # (B, L)
    ends,  # (B,)
    y,  # (B, L, D) out
    states,  # (B, M, D, N) out: before each tile
    last,  # (B, D, N) out
    length, x_batch, x_time, delta_batch, delta_time,
    b_batch, b_time, c_batch, c_time, gate_batch, gate_time,
    D: tl.constexpr, N: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TILE_N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, TILE_N)
    channel, place, real, inside = _place(tl.program_id(1), D, N, TILE_D, TILE_N)
    x, delta, gate = x + row * x_batch, delta + row * delta_batch, gate + row * gate_batch
    b, c, runs = b + row * b_batch, c + row * c_batch, runs + row * length
    y += row * length * D
    num_tiles = tl.cdiv(length, TILE_T)
    end = tl.load(ends + row)
    rate = tl.load(rates + place, mask=inside, other=0.0)
    direct = tl.load(skip + channel, mask=real, other=0.0)
    state = tl.load(initial + row * D * N + place, mask=inside, other=0.0)
    step = tl.arange(0, TILE_T)
    is_last = (step == TILE_T - 1)[:, None, None]
    for m in range(num_tiles):
        start = m * TILE_T
        t = start + step
        tl.store(states + (row * num_tiles + m) * D * N + place, state, mask=inside)
        steps = _step_sizes(delta, bias, start, step, channel, end, delta_time, D, SOFTPLUS)
        value = _rows(x, start, step, channel, length, x_time, D)
        b_t, c_t = (
            _rows(b, start, step, n, length, b_time, N),
            _rows(c, start, step, n, length, c_time, N),
        )
        a = _decays(steps, rate, runs, t, length)
        through, h = tl.associative_scan(
            (a, (steps * value)[:, :, None] * b_t[:, None, :]), 0, _then
        )
        h += through * state[None, :, :]
        state = tl.sum(tl.where(is_last, h, 0.0), 0)
        out = tl.sum(h * c_t[:, None, :], 2) + direct[None, :] * value
        if GATED:
            z = _rows(gate, start, step, channel, length, gate_time, D)
            out *= z * tl.sigmoid(z)
        mask = (t < length)[:, None] & real[None, :]
        tl.store(_at(y, start, step, channel, D), out.to(y.dtype.element_ty), mask=mask)
    tl.store(last + row * D * N + place, state, mask=inside)


@triton.jit
def gradients(
    x, delta, rates, b, c, skip, gate, bias, runs, ends,  # as in `scan`
    states,  # (B, M, D, N)
    grad_y,  # (B, L, D)
    grad_x, grad_delta, grad_gate,  # (B, L, D) out, that of delta in float32
    grad_rates,  # (B, D, N) zeros, out
    grad_b, grad_c,  # (B, groups of blocks, L, N) out
    grad_skip,  # (B, D) zeros, out
    grad_state,  # (B, D, N): of the last state, out: of the initial one
    length, num_blocks,  # of a program
    x_batch, x_time, delta_batch, delta_time, b_batch, b_time, c_batch, c_time,
    gate_batch, gate_time,
    D: tl.constexpr, N: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TILE_N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """lam_t, the gradient of h_t, is g_t c_t + a_{t+1} lam_{t+1}: the same scan from the end, with
    decays read one position later. Of the exponent d_t A the gradient is lam_t a_t h_{t-1}, and
    a_t h_{t-1} is h_t less the input: no shifted state is needed."""
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, TILE_N)
    x, delta, b = x + row * x_batch, delta + row * delta_batch, b + row * b_batch
    c, gate, runs = c + row * c_batch, gate + row * gate_batch, runs + row * length
    sequence = row * length * D  # of the contiguous ones
    grad_y, grad_gate = grad_y + sequence, grad_gate + sequence
    grad_x, grad_delta = grad_x + sequence, grad_delta + sequence
    grad_rates, grad_state = grad_rates + row * D * N, grad_state + row * D * N
    grad_skip += row * D
    num_tiles = tl.cdiv(length, TILE_T)
    partial = (row * tl.num_programs(1) + tl.program_id(1)) * length * N
    grad_b += partial
    grad_c += partial
    end = tl.load(ends + row)
    step = tl.arange(0, TILE_T)
    if TILE_N <= 16:  # offsets of 64 bits: gfx942 spills those of 32 here, NVIDIA those of 64 above
        step = step.to(tl.int64)
    is_first = (step == 0)[:, None, None]
    for back in range(num_tiles):
        m = num_tiles - 1 - back
        start = m * TILE_T
        t = start + step
        b_sum = tl.zeros((TILE_T, TILE_N), tl.float32)
        c_sum = tl.zeros((TILE_T, TILE_N), tl.float32)
        for block in range(num_blocks):
            number = tl.program_id(1) * num_blocks + block
            channel, place, real, inside = _place(number, D, N, TILE_D, TILE_N)
            rate = tl.load(rates + place, mask=inside, other=0.0)
            direct = tl.load(skip + channel, mask=real, other=0.0)
            steps = _step_sizes(delta, bias, start, step, channel, end, delta_time, D, SOFTPLUS)
            value = _rows(x, start, step, channel, length, x_time, D)
            b_t, c_t = (
                _rows(b, start, step, n, length, b_time, N),
                _rows(c, start, step, n, length, c_time, N),
            )
            a = _decays(steps, rate, runs, t, length)
            u = (steps * value)[:, :, None] * b_t[:, None, :]
            through, h = tl.associative_scan((a, u), 0, _then)
            before = tl.load(states + (row * num_tiles + m) * D * N + place, mask=inside, other=0.0)
            h += through * before[None, :, :]

            mask = (t < length)[:, None] & real[None, :]
            g = _rows(grad_y, start, step, channel, length, D, D)
            if GATED:
                z = _rows(gate, start, step, channel, length, gate_time, D)
                half = tl.sigmoid(z)
                out = tl.sum(h * c_t[:, None, :], 2) + direct[None, :] * value
                on_gate = g * out * half * (1 + z * (1 - half))
                tl.store(
                    _at(grad_gate, start, step, channel, D),
                    on_gate.to(grad_gate.dtype.element_ty),
                    mask=mask,
                )
                g *= z * half

            next_steps = _step_sizes(
                delta, bias, start, step + 1, channel, end, delta_time, D, SOFTPLUS
            )
            next_a = _decays(next_steps, rate, runs, t + 1, length)
            through, lam = tl.associative_scan(
                (next_a, g[:, :, None] * c_t[:, None, :]), 0, _then, reverse=True
            )
            later = tl.load(grad_state + place, mask=inside, other=0.0)  # lam behind the tile
            lam += through * later[None, :, :]
            later = tl.sum(tl.where(is_first, lam, 0.0), 0)
            if m == 0:
                later *= tl.sum(tl.where(is_first, a, 0.0), 0)
            tl.store(grad_state + place, later, mask=inside)

            c_sum += tl.sum(g[:, :, None] * h, 1)
            b_sum += tl.sum(lam * (steps * value)[:, :, None], 1)
            grad_u = tl.sum(lam * b_t[:, None, :], 2)  # of steps x
            grad_value = grad_u * steps + direct[None, :] * g
            tl.store(
                _at(grad_x, start, step, channel, D),
                grad_value.to(grad_x.dtype.element_ty),
                mask=mask,
            )
            exponent = lam * (h - u)
            grad_steps = grad_u * value + tl.sum(exponent * rate[None, :, :], 2)
            if SOFTPLUS:  # its derivative, the sigmoid, is 1 - e^-steps
                slope = tl.where(steps < 1e-3, steps - 0.5 * steps * steps, 1 - tl.exp(-steps))
                grad_steps *= slope
            grad_steps = tl.where((t < end)[:, None], grad_steps, 0.0)
            tl.store(_at(grad_delta, start, step, channel, D), grad_steps, mask=mask)
            skips = tl.load(grad_skip + channel, mask=real, other=0.0) + tl.sum(g * value, 0)
            tl.store(grad_skip + channel, skips, mask=real)
            of_rates = tl.load(grad_rates + place, mask=inside, other=0.0)
            of_rates += tl.sum(exponent * steps[:, :, None], 0)
            tl.store(grad_rates + place, of_rates, mask=inside)
            tl.debug_barrier()  # another thread may read at the next tile what this one wrote
        vector = (t < length)[:, None] & (n < N)[None, :]
        tl.store(_at(grad_c, start, step, n, N), c_sum, mask=vector)
        tl.store(_at(grad_b, start, step, n, N), b_sum, mask=vector)
