"""Triton kernels of the selective scan, forward and backward.

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
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

NUM_WARPS = 8
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
def _scan(
    x,  # (B, L, D)
    delta,  # (B, L, D)
    rates,  # (D, N)
    b,  # (B, L, N)
    c,  # (B, L, N)
    skip,  # (D,)
    gate,  # (B, L, D)
    bias,  # (D,)
    initial,  # (B, D, N)
    runs,  # (B, L)
    ends,  # (B,)
    y,  # (B, L, D) out
    states,  # (B, M, D, N) out: before each tile
    last,  # (B, D, N) out
    length,
    x_batch,
    x_time,
    delta_batch,
    delta_time,
    b_batch,
    b_time,
    c_batch,
    c_time,
    gate_batch,
    gate_time,
    D: tl.constexpr,
    N: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    GATED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    n = tl.arange(0, TILE_N)
    real = channel < D
    inside = real[:, None] & (n < N)[None, :]
    place = channel[:, None] * N + n[None, :]  # in a state
    num_tiles = tl.cdiv(length, TILE_T)
    x += row * x_batch
    delta += row * delta_batch
    b += row * b_batch
    c += row * c_batch
    gate += row * gate_batch
    runs += row * length
    y += row * length * D
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
def _gradients(
    x,  # (B, L, D)
    delta,  # (B, L, D)
    rates,  # (D, N)
    b,  # (B, L, N)
    c,  # (B, L, N)
    skip,  # (D,)
    gate,  # (B, L, D)
    bias,  # (D,)
    runs,  # (B, L)
    ends,  # (B,)
    states,  # (B, M, D, N)
    grad_y,  # (B, L, D)
    grad_last,  # (B, D, N)
    grad_x,  # (B, L, D) out
    grad_delta,  # (B, L, D) float32 out
    grad_gate,  # (B, L, D) out
    grad_rates,  # (B, D, N) out
    grad_b,  # (B, blocks of D, L, N) out
    grad_c,  # (B, blocks of D, L, N) out
    grad_skip,  # (B, D) out
    grad_initial,  # (B, D, N) out
    length,
    x_batch,
    x_time,
    delta_batch,
    delta_time,
    b_batch,
    b_time,
    c_batch,
    c_time,
    gate_batch,
    gate_time,
    D: tl.constexpr,
    N: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    GATED: tl.constexpr,
):
    """lam_t, the gradient of h_t, is g_t c_t + a_{t+1} lam_{t+1}: the same scan from the end, with
    decays read one position later. Of the exponent d_t A the gradient is lam_t a_t h_{t-1}, and
    a_t h_{t-1} is h_t less the input: no shifted state is needed."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    n = tl.arange(0, TILE_N)
    real = channel < D
    inside = real[:, None] & (n < N)[None, :]
    place = channel[:, None] * N + n[None, :]
    num_tiles = tl.cdiv(length, TILE_T)
    x += row * x_batch
    delta += row * delta_batch
    b += row * b_batch
    c += row * c_batch
    gate += row * gate_batch
    runs += row * length
    grad_y += row * length * D
    grad_x += row * length * D
    grad_delta += row * length * D
    grad_gate += row * length * D
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


def selective_scan_triton(
    x: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan on a GPU: arguments and results as in `selective_scan`. The sequences may be views
    of larger tensors (where their last stride is not 1 they are copied)."""
    batch, length, channels = x.shape
    zeros = torch.zeros(channels, device=x.device)
    if initial_state is None:
        initial_state = torch.zeros(batch, *rates.shape, device=x.device)
    runs = torch.zeros(batch, length, dtype=torch.int32, device=x.device)
    if segments is not None:
        runs[:, 1:] = (segments[:, 1:] != segments[:, :-1]).cumsum(1)
    if lengths is None:
        lengths = torch.full((batch,), length, device=x.device)
    sequences = (x, delta, b, c, x if gate is None else gate)
    x, delta, b, c, z = (t if t.stride(-1) == 1 else t.contiguous() for t in sequences)
    return _SelectiveScan.apply(
        x,
        delta,
        rates.float(),
        b,
        c,
        zeros if skip is None else skip.float(),
        z if gate is not None else x.detach(),
        zeros if delta_bias is None else delta_bias.float(),
        initial_state.float(),
        runs,
        lengths.to(torch.int32),
        delta_softplus,
        gate is not None,
    )


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        rates: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor,
        gate: Tensor,
        bias: Tensor,
        initial: Tensor,
        runs: Tensor,
        ends: Tensor,
        softplus: bool,
        gated: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = (x, delta, rates, b, c, skip, gate, bias)
        y, last, states = _forward(*inputs, initial, runs, ends, softplus, gated)
        ctx.save_for_backward(*inputs, runs, ends, states)
        ctx.softplus, ctx.gated = softplus, gated
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads: list[Tensor | None] = list(
            _backward(grad_y.contiguous(), grad_last.contiguous(), *saved, ctx.softplus, ctx.gated)
        )
        if not ctx.gated:
            grads[6] = None
        return (*grads, None, None, None, None)


def _tiles(states: int) -> tuple[int, int]:
    """Positions and channels of a tile. With 8 warps, 16 x 16 x 16 values compile for sm_90 to 125
    registers per thread forward and 242 backward; of more than 16 states a tile has 2048 values."""
    if states <= 16:
        return 16, 16
    tile_n = triton.next_power_of_2(states)
    return (16, 128 // tile_n) if tile_n <= 128 else (8, 1)


def _launch(x: Tensor, rates: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants."""
    channels, states = rates.shape
    tile_t, tile_d = _tiles(states)
    constants = {
        "D": channels,
        "N": states,
        "TILE_T": tile_t,
        "TILE_D": tile_d,
        "TILE_N": triton.next_power_of_2(states),
        "num_warps": NUM_WARPS,
    }
    return (x.shape[0], triton.cdiv(channels, tile_d)), constants


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::selective_scan_forward", mutates_args=())
def _forward(
    x: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    gate: Tensor,
    bias: Tensor,
    initial: Tensor,
    runs: Tensor,
    ends: Tensor,
    softplus: bool,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states before each tile (B, M, D, N)."""
    grid, constants = _launch(x, rates)
    y, last, states = _forward_outputs(x, rates)
    _scan[grid](
        x,
        delta,
        rates.contiguous(),
        b,
        c,
        skip.contiguous(),
        gate,
        bias.contiguous(),
        initial.contiguous(),
        runs,
        ends,
        y,
        states,
        last,
        x.shape[1],
        *_strides(x, delta, b, c, gate),
        SOFTPLUS=softplus,
        GATED=gated,
        **constants,
    )
    return y, last, states


@_forward.register_fake
def _(x, delta, rates, b, c, skip, gate, bias, initial, runs, ends, softplus, gated):
    return _forward_outputs(x, rates)


def _forward_outputs(x: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def new(*shape: int) -> Tensor:
        return torch.empty(shape, device=x.device, dtype=torch.float32)

    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = new(x.shape[0], *rates.shape)
    num_tiles = -(-x.shape[1] // _tiles(rates.shape[1])[0])
    return y, last, new(x.shape[0], num_tiles, *rates.shape)


@torch.library.custom_op("nanozoo::selective_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    gate: Tensor,
    bias: Tensor,
    runs: Tensor,
    ends: Tensor,
    states: Tensor,
    softplus: bool,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, rates, b, c, skip, gate (empty without one), bias, initial state."""
    grid, constants = _launch(x, rates)
    batch, length, channels = x.shape

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, device=x.device, dtype=torch.float32)

    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_delta = new(batch, length, channels)
    grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format) if gated else new(0)
    grad_rates, grad_initial = new(batch, *rates.shape), new(batch, *rates.shape)
    partial_b, partial_c = (new(*grid, length, b.shape[2]) for _ in range(2))
    grad_skip = new(batch, channels)
    _gradients[grid](
        x,
        delta,
        rates.contiguous(),
        b,
        c,
        skip.contiguous(),
        gate,
        bias.contiguous(),
        runs,
        ends,
        states,
        grad_y,
        grad_last,
        grad_x,
        grad_delta,
        grad_gate,
        grad_rates,
        partial_b,
        partial_c,
        grad_skip,
        grad_initial,
        length,
        *_strides(x, delta, b, c, gate),
        SOFTPLUS=softplus,
        GATED=gated,
        **constants,
    )
    return (
        grad_x,
        grad_delta.to(delta.dtype),
        grad_rates.sum(0),
        partial_b.sum(1).to(b.dtype),
        partial_c.sum(1).to(c.dtype),
        grad_skip.sum(0),
        grad_gate,
        grad_delta.sum((0, 1)),
        grad_initial,
    )


@_backward.register_fake
def _(grad_y, grad_last, x, delta, rates, b, c, skip, gate, bias, runs, ends, states, softplus,
      gated):  # fmt: skip
    new_gate = gate if gated else gate.new_empty(0, dtype=torch.float32)
    outputs = (x, delta, rates, b, c, skip, new_gate, bias, grad_last)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in outputs)
