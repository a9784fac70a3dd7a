"""Triton kernels of the linear recurrence, forward and backward.

The reference and the fast torch form are in `linear_recurrence.py`, which chooses between them.

A program walks over the tiles of T positions of one row and TILE_D channels; inside a tile the
recurrence is an associative scan of pairs (decay, state), between tiles the state is carried in
registers. Memory bound: the forward pass reads decays and inputs and writes the states once, the
backward pass reads decays, states and their gradients and writes two gradients.

Shapes: B batch, L sequence, D channels, T positions of a tile.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# 64 positions by 32 channels: 16 pairs per thread of 4 warps, and rows of 128 bytes.
TILE_T, TILE_D = 64, 32


@triton.jit
def _then(decay, state, next_decay, next_state):
    """Two steps of the recurrence as one."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _rows(pointer, t, channel, length, D: tl.constexpr, SHARED: tl.constexpr):
    """Positions t of a contiguous (L, D) tensor, or of a (L,) one for all channels; 0 outside."""
    mask = ((t >= 0) & (t < length))[:, None] & (channel < D)[None, :]
    if SHARED:
        offsets = t[:, None] + 0 * channel[None, :]
    else:
        offsets = t.to(tl.int64)[:, None] * D + channel[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def _recur(
    decay,  # (B, L, D) or (B, L)
    inputs,  # (B, L, D)
    initial,  # (B, D)
    states,  # (B, L, D) out
    length,
    D: tl.constexpr, SHARED: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    real, sequence = channel < D, row * length * D
    decay += row * length if SHARED else sequence
    inputs, states = inputs + sequence, states + sequence
    state = tl.load(initial + row * D + channel, mask=real, other=0.0)
    is_last = (tl.arange(0, TILE_T) == TILE_T - 1)[:, None]
    for m in range(tl.cdiv(length, TILE_T)):
        t = m * TILE_T + tl.arange(0, TILE_T)
        a = _rows(decay, t, channel, length, D, SHARED)
        b = _rows(inputs, t, channel, length, D, False)
        through, h = tl.associative_scan((a, b), 0, _then)
        h += through * state[None, :]
        state = tl.sum(tl.where(is_last, h, 0.0), 0)
        offsets = t.to(tl.int64)[:, None] * D + channel[None, :]
        tl.store(states + offsets, h, mask=(t < length)[:, None] & real[None, :])


@triton.jit
def _gradients(
    decay,  # (B, L, D) or (B, L)
    states,  # (B, L, D)
    initial,  # (B, D)
    grad,  # (B, L, D)
    grad_decay,  # (B, L, D), or with shared decays (B, blocks of D, L), out
    grad_inputs,  # (B, L, D) out
    grad_initial,  # (B, D) out
    length,
    D: tl.constexpr, SHARED: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """lam_t = grad_t + a_{t+1} lam_{t+1}, from the end, is the gradient of input t; that of decay t
    is lam_t h_{t-1}."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    real, sequence = channel < D, row * length * D
    decay += row * length if SHARED else sequence
    states, grad, grad_inputs = states + sequence, grad + sequence, grad_inputs + sequence
    if SHARED:
        grad_decay += (row * tl.num_programs(1) + tl.program_id(1)) * length
    else:
        grad_decay += sequence
    first = tl.load(initial + row * D + channel, mask=real, other=0.0)
    later = tl.zeros((TILE_D,), tl.float32)  # lam behind the tile
    is_first = (tl.arange(0, TILE_T) == 0)[:, None]
    num_tiles = tl.cdiv(length, TILE_T)
    for back in range(num_tiles):
        t = (num_tiles - 1 - back) * TILE_T + tl.arange(0, TILE_T)
        next_a = _rows(decay, t + 1, channel, length, D, SHARED)
        g = _rows(grad, t, channel, length, D, False)
        through, lam = tl.associative_scan((next_a, g), 0, _then, reverse=True)
        lam += through * later[None, :]
        later = tl.sum(tl.where(is_first, lam, 0.0), 0)
        before = _rows(states, t - 1, channel, length, D, False)
        before = tl.where((t == 0)[:, None], first[None, :], before)
        offsets = t.to(tl.int64)[:, None] * D + channel[None, :]
        mask = (t < length)[:, None] & real[None, :]
        tl.store(grad_inputs + offsets, lam, mask=mask)
        if SHARED:
            tl.store(grad_decay + t, tl.sum(lam * before, 1), mask=t < length)
        else:
            tl.store(grad_decay + offsets, lam * before, mask=mask)
    if SHARED:
        a = tl.load(decay)
    else:
        a = tl.load(decay + channel, mask=real, other=0.0)
    tl.store(grad_initial + row * D + channel, a * later, mask=real)


def linear_recurrence_triton(decay: Tensor, inputs: Tensor, initial_state: Tensor) -> Tensor:
    """All states on a GPU, in float32; `decay` is (B, L, D) or (B, L, 1)."""
    return _LinearRecurrence.apply(decay, inputs, initial_state)


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial_state: Tensor) -> Tensor:
        decay, initial_state = decay.contiguous(), initial_state.contiguous()
        states = _forward(decay, inputs.contiguous(), initial_state)
        ctx.save_for_backward(decay, states, initial_state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(grad.contiguous(), *ctx.saved_tensors)


def _launch(decay: Tensor, states: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants."""
    batch, _, channels = states.shape
    shared = decay.shape[2] == 1 and channels > 1
    constants = {"D": channels, "SHARED": shared, "TILE_T": TILE_T, "TILE_D": TILE_D}
    return (batch, triton.cdiv(channels, TILE_D)), constants


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::linear_recurrence_forward", mutates_args=())
def _forward(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    states = torch.empty_like(inputs)
    grid, constants = _launch(decay, inputs)
    _recur[grid](decay, inputs, initial, states, inputs.shape[1], **constants)
    return states


@_forward.register_fake
def _(decay, inputs, initial):
    return torch.empty_like(inputs)


@torch.library.custom_op("nanozoo::linear_recurrence_backward", mutates_args=())
def _backward(
    grad: Tensor, decay: Tensor, states: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of decay, inputs and initial state."""
    grid, constants = _launch(decay, states)
    batch, length, channels = states.shape
    shape = (batch, grid[1], length) if constants["SHARED"] else (batch, length, channels)
    grad_decay = torch.empty(shape, device=grad.device, dtype=grad.dtype)
    grad_inputs, grad_initial = torch.empty_like(states), torch.empty_like(initial)
    _gradients[grid](
        decay, states, initial, grad, grad_decay, grad_inputs, grad_initial, length, **constants
    )
    if constants["SHARED"]:
        grad_decay = grad_decay.sum(1)[..., None]
    return grad_decay, grad_inputs, grad_initial


@_backward.register_fake
def _(grad, decay, states, initial):
    return torch.empty_like(decay), torch.empty_like(states), torch.empty_like(initial)
