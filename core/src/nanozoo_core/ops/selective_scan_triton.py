"""The selective scan on a GPU: how the kernels of `selective_scan_kernels.py` are launched.

The reference is in `selective_scan.py`, which chooses between the fast torch form in
`selective_scan_torch.py` and this one.

Shapes: B batch, L sequence, D channels, N state size, T positions of a tile, M tiles.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.ops import selective_scan_kernels as kernels
from nanozoo_core.ops.backend import segment_runs, unit_stride
from nanozoo_core.ops.selective_scan_torch import ScanArguments

NUM_WARPS = 8
# Of the backward pass, that keep a GPU busy: each leaves a partial sum for b and one for c.
GRADIENT_PROGRAMS = 256


def selective_scan_triton(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """The scan on a GPU. The sequences may be views of larger tensors (where their last stride is
    not 1 they are copied)."""
    batch, length, channels = scan.x.shape
    initial, ends, gated = scan.initial_state, scan.lengths, scan.gate is not None
    if initial is None:
        initial = torch.zeros(batch, *scan.rates.shape, device=scan.x.device)
    if ends is None:
        ends = torch.full((batch,), length, device=scan.x.device)
    x, delta, b, c = (unit_stride(t) for t in (scan.x, scan.delta, scan.b, scan.c))
    rates, initial = scan.rates.float().contiguous(), initial.float().contiguous()
    skip, bias = (
        torch.zeros(channels, device=x.device) if vector is None else vector.float().contiguous()
        for vector in (scan.skip, scan.delta_bias)
    )
    gate = x.detach() if scan.gate is None else unit_stride(scan.gate)
    runs, ends = segment_runs(x, scan.segments), ends.to(torch.int32)
    inputs = (x, delta, rates, b, c, skip, gate, bias)
    return _SelectiveScan.apply(scan.delta_softplus, gated, initial, runs, ends, *inputs)


class _SelectiveScan(torch.autograd.Function):
    """`inputs` are, here and below: x, delta, rates, b, c, skip, gate, bias."""

    @staticmethod
    def forward(
        ctx: Any, softplus: bool, gated: bool, initial: Tensor, runs: Tensor, ends: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        y, last, states = _forward(inputs, initial, runs, ends, softplus, gated)
        ctx.save_for_backward(runs, ends, states, *inputs)
        ctx.softplus, ctx.gated = softplus, gated
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        runs, ends, states, *inputs = ctx.saved_tensors
        upper = (grad_y.contiguous(), grad_last.contiguous())
        *grads, initial = _backward(*upper, inputs, runs, ends, states, ctx.softplus, ctx.gated)
        if not ctx.gated:
            grads[6] = None
        return (None, None, initial, None, None, *grads)


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


def _strides(inputs: Sequence[Tensor]) -> list[int]:
    x, delta, _, b, c, _, gate, _ = inputs
    return [stride for tensor in (x, delta, b, c, gate) for stride in tensor.stride()[:2]]


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::selective_scan_forward", mutates_args=())
def _forward(
    inputs: Sequence[Tensor],
    initial: Tensor,
    runs: Tensor,
    ends: Tensor,
    softplus: bool,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states before each tile (B, M, D, N)."""
    x, _, rates, *_ = inputs
    grid, constants = _launch(x, rates)
    y, last, states = _forward_outputs(x, rates)
    kernels.scan[grid](
        *inputs, initial, runs, ends, y, states, last, x.shape[1], *_strides(inputs),
        SOFTPLUS=softplus, GATED=gated, **constants,
    )  # fmt: skip
    return y, last, states


@_forward.register_fake
def _(inputs, initial, runs, ends, softplus, gated):
    return _forward_outputs(inputs[0], inputs[2])


def _forward_outputs(x: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_tiles = -(-x.shape[1] // _tiles(rates.shape[1])[0])
    shapes = (x.shape[0], *rates.shape), (x.shape[0], num_tiles, *rates.shape)
    last, states = (torch.empty(s, device=x.device, dtype=torch.float32) for s in shapes)
    return torch.empty_like(x, memory_format=torch.contiguous_format), last, states


@torch.library.custom_op("nanozoo::selective_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_last: Tensor,
    inputs: Sequence[Tensor],
    runs: Tensor,
    ends: Tensor,
    states: Tensor,
    softplus: bool,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the inputs, that of the gate empty without one, and of the initial state."""
    x, delta, rates, b, c, _, gate, _ = inputs
    (batch, blocks), constants = _launch(x, rates)
    _, length, channels = x.shape

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, device=x.device, dtype=torch.float32)

    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_delta = new(batch, length, channels)
    grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format) if gated else new(0)
    grad_rates, grad_skip = new(batch, *rates.shape).zero_(), new(batch, channels).zero_()
    grad_state = grad_last.clone()
    num_blocks = triton.cdiv(blocks, min(blocks, triton.cdiv(GRADIENT_PROGRAMS, batch)))
    programs = (batch, triton.cdiv(blocks, num_blocks))
    partial_b, partial_c = (new(*programs, length, b.shape[2]) for _ in range(2))
    kernels.gradients[programs](
        *inputs, runs, ends, states, grad_y, grad_x, grad_delta, grad_gate, grad_rates,
        partial_b, partial_c, grad_skip, grad_state, length, num_blocks, *_strides(inputs),
        SOFTPLUS=softplus, GATED=gated, **constants,
    )  # fmt: skip
    return (
        grad_x,
        grad_delta.to(delta.dtype),
        grad_rates.sum(0),
        partial_b.sum(1).to(b.dtype),
        partial_c.sum(1).to(c.dtype),
        grad_skip.sum(0),
        grad_gate,
        grad_delta.sum((0, 1)),
        grad_state,
    )


@_backward.register_fake
def _(grad_y, grad_last, inputs, runs, ends, states, softplus, gated):
    outputs = [*inputs, grad_last]
    if not gated:
        outputs[6] = grad_last.new_empty(0)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in outputs)
