"""The selective scan on a GPU: how the kernels of `selective_scan_kernels.py` are launched.

The reference is in `selective_scan.py`, which chooses between the fast torch form in
`selective_scan_torch.py` and this one.

Shapes: B batch, L sequence, D channels, N state size, T positions of a tile, M tiles.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.ops import selective_scan_kernels as kernels
from nanozoo_core.ops.backend import segment_runs, unit_stride

NUM_WARPS = 8


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
    if lengths is None:
        lengths = torch.full((batch,), length, device=x.device)
    sequences = (x, delta, b, c, x if gate is None else gate)
    x, delta, b, c, z = (unit_stride(t) for t in sequences)
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
        segment_runs(x, segments),
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
    kernels.scan[grid](
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
    kernels.gradients[grid](
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
