"""The Triton kernels of the selective scan; `selective_scan_triton.py` launches them.

A program walks over the tiles of T positions of one row and TILE_D channels. Inside a tile the
recurrence is an associative scan of pairs (decay, state); between tiles the last state is carried
in registers. Saved are the states before each tile, from which the backward pass, walking from the
end, makes the tile's states again. Softplus, bias, skip and gate are part of both.

Memory traffic: the forward pass reads x, delta, gate, b, c and writes y once, and N / T states for
each position and channel; nothing of size (B, L, D, N). The gradients of b and c are written as one
partial sum for each block of channels and added outside: no atomics, so that results repeat.

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
def _step_sizes(delta, bias, t, channel, end, time, D: tl.constexpr, SOFTPLUS: tl.constexpr):
    """(T, TILE_D) float32; 0 at and behind `end`, where the state must stay as it is."""
    real = (t < end)[:, None] & (channel < D)[None, :]
    offsets = t.to(tl.int64)[:, None] * time + channel[None, :]
    steps = tl.load(delta + offsets, mask=real, other=0.0).to(tl.float32)
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
def _rows(pointer, t, column, length, time, C: tl.constexpr):
    """Positions t of a (L, C) tensor, (T, columns) float32; 0 outside."""
    mask = (t < length)[:, None] & (column < C)[None, :]
    offsets = t.to(tl.int64)[:, None] * time + column[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(D: tl.constexpr, N: tl.constexpr, TILE_D: tl.constexpr, TILE_N: tl.constexpr):
    """Of a program: its row, its channels, the states n, where (channel, n) lies in a state, and
    masks of both."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    n = tl.arange(0, TILE_N)
    real = channel < D
    inside = real[:, None] & (n < N)[None, :]
    return row, channel, n, channel[:, None] * N + n[None, :], real, inside


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
    row, channel, n, place, real, inside = _place(D, N, TILE_D, TILE_N)
    x, delta, gate = x + row * x_batch, delta + row * delta_batch, gate + row * gate_batch
    b, c, runs = b + row * b_batch, c + row * c_batch, runs + row * length
    y += row * length * D
    num_tiles = tl.cdiv(length, TILE_T)
    end = tl.load(ends + row)
    rate = tl.load(rates + place, mask=inside, other=0.0)
    direct = tl.load(skip + channel, mask=real, other=0.0)
    state = tl.load(initial + row * D * N + place, mask=inside, other=0.0)
    is_last = (tl.arange(0, TILE_T) == TILE_T - 1)[:, None, None]
    for m in range(num_tiles):
        t = m * TILE_T + tl.arange(0, TILE_T)
        tl.store(states + (row * num_tiles + m) * D * N + place, state, mask=inside)
        steps = _step_sizes(delta, bias, t, channel, end, delta_time, D, SOFTPLUS)
        value = _rows(x, t, channel, length, x_time, D)
        b_t, c_t = _rows(b, t, n, length, b_time, N), _rows(c, t, n, length, c_time, N)
        a = _decays(steps, rate, runs, t, length)
        through, h = tl.associative_scan(
            (a, (steps * value)[:, :, None] * b_t[:, None, :]), 0, _then
        )
        h += through * state[None, :, :]
        state = tl.sum(tl.where(is_last, h, 0.0), 0)
        out = tl.sum(h * c_t[:, None, :], 2) + direct[None, :] * value
        if GATED:
            z = _rows(gate, t, channel, length, gate_time, D)
            out *= z * tl.sigmoid(z)
        offsets = t.to(tl.int64)[:, None] * D + channel[None, :]
        mask = (t < length)[:, None] & real[None, :]
        tl.store(y + offsets, out.to(y.dtype.element_ty), mask=mask)
    tl.store(last + row * D * N + place, state, mask=inside)


@triton.jit
def gradients(
    x, delta, rates, b, c, skip, gate, bias, runs, ends,  # as in `scan`
    states,  # (B, M, D, N)
    grad_y,  # (B, L, D)
    grad_last,  # (B, D, N)
    grad_x, grad_delta, grad_gate,  # (B, L, D) out, that of delta in float32
    grad_rates,  # (B, D, N) out
    grad_b, grad_c,  # (B, blocks of D, L, N) out
    grad_skip,  # (B, D) out
    grad_initial,  # (B, D, N) out
    length, x_batch, x_time, delta_batch, delta_time,
    b_batch, b_time, c_batch, c_time, gate_batch, gate_time,
    D: tl.constexpr, N: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TILE_N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """lam_t, the gradient of h_t, is g_t c_t + a_{t+1} lam_{t+1}: the same scan from the end, with
    decays read one position later. Of the exponent d_t A the gradient is lam_t a_t h_{t-1}, and
    a_t h_{t-1} is h_t less the input: no shifted state is needed."""
    row, channel, n, place, real, inside = _place(D, N, TILE_D, TILE_N)
    x, delta, b = x + row * x_batch, delta + row * delta_batch, b + row * b_batch
    c, gate, runs = c + row * c_batch, gate + row * gate_batch, runs + row * length
    sequence = row * length * D  # of the contiguous ones
    grad_y, grad_gate = grad_y + sequence, grad_gate + sequence
    grad_x, grad_delta = grad_x + sequence, grad_delta + sequence
    num_tiles = tl.cdiv(length, TILE_T)
    partial = (row * tl.num_programs(1) + tl.program_id(1)) * length * N
    grad_b += partial
    grad_c += partial
    end = tl.load(ends + row)
    rate = tl.load(rates + place, mask=inside, other=0.0)
    direct = tl.load(skip + channel, mask=real, other=0.0)
    later = tl.load(grad_last + row * D * N + place, mask=inside, other=0.0)  # lam behind the tile
    rate_sum = tl.zeros((TILE_D, TILE_N), tl.float32)
    skip_sum = tl.zeros((TILE_D,), tl.float32)
    is_first = (tl.arange(0, TILE_T) == 0)[:, None, None]
    for back in range(num_tiles):
        m = num_tiles - 1 - back
        t = m * TILE_T + tl.arange(0, TILE_T)
        steps = _step_sizes(delta, bias, t, channel, end, delta_time, D, SOFTPLUS)
        value = _rows(x, t, channel, length, x_time, D)
        b_t, c_t = _rows(b, t, n, length, b_time, N), _rows(c, t, n, length, c_time, N)
        a = _decays(steps, rate, runs, t, length)
        u = (steps * value)[:, :, None] * b_t[:, None, :]
        through, h = tl.associative_scan((a, u), 0, _then)
        before = tl.load(states + (row * num_tiles + m) * D * N + place, mask=inside, other=0.0)
        h += through * before[None, :, :]

        offsets = t.to(tl.int64)[:, None] * D + channel[None, :]
        mask = (t < length)[:, None] & real[None, :]
        g = _rows(grad_y, t, channel, length, D, D)
        if GATED:
            z = _rows(gate, t, channel, length, gate_time, D)
            half = tl.sigmoid(z)
            out = tl.sum(h * c_t[:, None, :], 2) + direct[None, :] * value
            through_gate = g * out * half * (1 + z * (1 - half))
            tl.store(grad_gate + offsets, through_gate.to(grad_gate.dtype.element_ty), mask=mask)
            g *= z * half

        next_steps = _step_sizes(delta, bias, t + 1, channel, end, delta_time, D, SOFTPLUS)
        next_a = _decays(next_steps, rate, runs, t + 1, length)
        through, lam = tl.associative_scan(
            (next_a, g[:, :, None] * c_t[:, None, :]), 0, _then, reverse=True
        )
        lam += through * later[None, :, :]
        later = tl.sum(tl.where(is_first, lam, 0.0), 0)

        rows = t.to(tl.int64)[:, None] * N + n[None, :]
        vector = (t < length)[:, None] & (n < N)[None, :]
        tl.store(grad_c + rows, tl.sum(g[:, :, None] * h, 1), mask=vector)
        tl.store(grad_b + rows, tl.sum(lam * (steps * value)[:, :, None], 1), mask=vector)
        grad_u = tl.sum(lam * b_t[:, None, :], 2)  # of steps x
        grad_value = grad_u * steps + direct[None, :] * g
        tl.store(grad_x + offsets, grad_value.to(grad_x.dtype.element_ty), mask=mask)
        skip_sum += tl.sum(g * value, 0)
        exponent = lam * (h - u)
        rate_sum += tl.sum(exponent * steps[:, :, None], 0)
        grad_steps = grad_u * value + tl.sum(exponent * rate[None, :, :], 2)
        if SOFTPLUS:  # its derivative, the sigmoid, is 1 - e^-steps
            grad_steps *= tl.where(steps < 1e-3, steps - 0.5 * steps * steps, 1 - tl.exp(-steps))
        grad_steps = tl.where((t < end)[:, None], grad_steps, 0.0)
        tl.store(grad_delta + offsets, grad_steps, mask=mask)
        if m == 0:
            first = tl.sum(tl.where(is_first, a, 0.0), 0)
            tl.store(grad_initial + row * D * N + place, first * later, mask=inside)
    tl.store(grad_rates + row * D * N + place, rate_sum, mask=inside)
    tl.store(grad_skip + row * D + channel, skip_sum, mask=real)
