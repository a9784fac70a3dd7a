"""The plain linear recurrence h_t = a_t h_{t-1} + b_t: an average with given decays.

The reference (`linear_recurrence_reference`) and the fast torch form (`linear_recurrence_torch`)
are here, the Triton twin in `linear_recurrence_triton.py`.

Shapes: B batch, L sequence, D channels, K chunks of T positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.ops.backend import Backend, check_shapes, segment_starts, use_triton

# Below so many values per position the calls of a plain loop cost more than its arithmetic.
NARROW = 4096


def linear_recurrence(
    decay: Tensor,
    inputs: Tensor,
    *,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence over a whole sequence, differentiably in every real argument.

    Args:
        decay: a (B, L, D), or (B, L) for all channels; at most 1 in size, or states may overflow.
        inputs: b (B, L, D), any floating type.
        initial_state: (B, D) before the first position, or None for zeros.
        segments: (B, L) integers; the state starts from zero wherever the number changes. The
            initial state belongs to the first segment.
        backend: auto is triton on CUDA and torch elsewhere.

    Returns: all states (B, L, D) and the last (B, D), in float32 (float64 if the inputs are).
    Raises: ValueError when the shapes do not fit, or triton is asked for where it cannot run.
    """
    _check_shapes(decay, inputs, initial_state, segments)
    dtype = wide_dtype(inputs)
    decay, inputs = decay.to(dtype), inputs.to(dtype)
    if segments is not None:
        starts = segment_starts(segments)
        decay = decay.masked_fill(starts if decay.dim() == 2 else starts[..., None], 0.0)
    if decay.dim() == 2:
        decay = decay[..., None]  # (B, L, 1)
    if initial_state is None:
        initial_state = inputs.new_zeros(inputs.shape[0], inputs.shape[2])
    if use_triton(backend, inputs):
        from nanozoo_core.ops.linear_recurrence_triton import linear_recurrence_triton as scan
    else:
        scan = linear_recurrence_torch
    states = scan(decay, inputs, initial_state.to(dtype))
    return states, states[:, -1]


def linear_recurrence_reference(
    decay: Tensor,
    inputs: Tensor,
    *,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one position after the other; arguments as in
    `linear_recurrence`."""
    dtype = wide_dtype(inputs)
    state = torch.zeros_like(inputs[:, 0]) if initial_state is None else initial_state
    state = state.to(dtype)
    if decay.dim() == 2:
        decay = decay[..., None]
    decays, added = decay.to(dtype).unbind(1), inputs.to(dtype).unbind(1)
    keeps = None if segments is None else segment_starts(segments).logical_not().unbind(1)
    states = []
    for t, (a, b) in enumerate(zip(decays, added, strict=True)):
        if keeps is not None:
            state = state * keeps[t][:, None]
        state = a * state + b
        states.append(state)
    return torch.stack(states, dim=1), state


@uncompiled(with_callees=True)
def linear_recurrence_torch(decay: Tensor, inputs: Tensor, initial_state: Tensor) -> Tensor:
    """All states, in plain torch with a hand-written backward pass (differentiable once); `decay`
    is (B, L, D) or (B, L, 1)."""
    return _LinearRecurrence.apply(decay, inputs, initial_state)


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial_state: Tensor) -> Tensor:
        states = _recur(decay, inputs, initial_state)
        ctx.save_for_backward(decay, states, initial_state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # lam_t = grad_t + a_{t+1} lam_{t+1}: the same recurrence from the end.
        decay, states, initial_state = ctx.saved_tensors
        lam = _recur(F.pad(decay[:, 1:], (0, 0, 0, 1)), grad, reverse=True)
        before = torch.cat([initial_state[:, None], states[:, :-1]], dim=1)
        if decay.shape[2] == 1:
            grad_decay = torch.linalg.vecdot(lam, before)[..., None]
        else:
            grad_decay = before.mul_(lam)
        return grad_decay, lam, decay[:, 0] * lam[:, 0]


def _recur(
    decay: Tensor, inputs: Tensor, initial_state: Tensor | None = None, *, reverse: bool = False
) -> Tensor:
    """The states in a fresh tensor, one fused multiply-add per position. Narrow sequences are cut
    into chunks that go side by side, after which each hands its last state to the next."""
    batch, length, channels = inputs.shape
    narrow = batch * channels < NARROW and length > 64
    size = math.isqrt(length - 1) + 1 if narrow else length
    num_chunks = -(-length // size)
    padding = (0, 0, 0, num_chunks * size - length)
    h = F.pad(inputs, padding) if padding[-1] else inputs.clone()
    h = h.unflatten(1, (num_chunks, size))  # (B, K, T, D)
    a = F.pad(decay, padding).unflatten(1, (num_chunks, size))
    if initial_state is not None:
        h[:, 0, 0].addcmul_(a[:, 0, 0], initial_state)
    order = slice(None, None, -1 if reverse else 1)
    states, decays = h.unbind(2)[order], a.unbind(2)[order]  # (B, K, D) each
    for t in range(1, size):
        states[t].addcmul_(decays[t], states[t - 1])
    if num_chunks > 1:
        through = a.clone()  # the product of a chunk's decays up to each position
        products = through.unbind(2)[order]
        for t in range(1, size):
            products[t].mul_(products[t - 1])
        chunks, factors = h.unbind(1)[order], through.unbind(1)[order]  # (B, T, D) each
        end = slice(0, 1) if reverse else slice(size - 1, size)
        for k in range(1, num_chunks):
            chunks[k].addcmul_(factors[k], chunks[k - 1][:, end])
    return h.flatten(1, 2)[:, :length]


def _check_shapes(
    decay: Tensor, inputs: Tensor, initial_state: Tensor | None, segments: Tensor | None
) -> None:
    if inputs.dim() != 3 or inputs.shape[1] == 0:
        raise ValueError(
            f"inputs has shape {tuple(inputs.shape)}; want (B, L, D) with L of at least 1"
        )
    batch, length, channels = inputs.shape
    check_shapes(
        decay=(decay, (batch, length) if decay.dim() == 2 else (batch, length, channels)),
        initial_state=(initial_state, (batch, channels)),
        segments=(segments, (batch, length)),
    )
