"""The selective scan, the recurrence of Mamba: a decay for every position, channel and state.

    d_t = softplus(delta_t + delta_bias)        h_t = exp(d_t A) h_{t-1} + d_t x_t b_t
    y_t = (sum_n c_t h_t + skip x_t) silu(gate_t)

The reference (`selective_scan_reference`) is here, the fast torch form in
`selective_scan_torch.py`; the Triton twin is launched by `selective_scan_triton.py`, its kernels
are in `selective_scan_kernels.py`.

Shapes: B batch, L sequence, D channels, N state size. b and c are shared by all
channels. A, the rates, is negative.
Reference: arXiv 2312.00752, eq. 2a and algorithm 2. The input is discretised as in its code, by
d_t b_t (Euler), while the decay is exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.ops.backend import Backend, check_shapes, segment_starts, use_triton
from nanozoo_core.ops.selective_scan_torch import ScanArguments, selective_scan_torch, step_sizes


def selective_scan(
    x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, *,
    skip: Tensor | None = None, gate: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
    initial_state: Tensor | None = None, segments: Tensor | None = None,
    lengths: Tensor | None = None, backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Runs the recurrence over a whole sequence, differentiably in every real argument.

    Args:
        x: (B, L, D), any floating type.
        delta: (B, L, D) step sizes, or what they are made of.
        rates: A (D, N), at most 0.
        b, c: (B, L, N).
        skip: (D,), or None for no direct path.
        gate: (B, L, D), or None for no gate.
        delta_bias: (D,), added to delta; None is 0.
        delta_softplus: whether the step sizes are the softplus of delta, else delta itself.
        initial_state: (B, D, N) before the first position, or None for zeros.
        segments: (B, L) integers; the state starts from zero wherever the number changes. The
            initial state belongs to the first segment.
        lengths: (B,) valid positions of right-padded rows: later ones leave the state as it is.
        backend: auto is triton on CUDA and torch elsewhere.

    Returns: y (B, L, D) of x's type, and the last state (B, D, N) in float32. Step sizes, decays
        and states are float32 whatever the inputs (float64 if x is).
    Raises: ValueError when the shapes do not fit, or triton is asked for where it cannot run.
    """
    scan = ScanArguments(
        x, delta, rates, b, c, skip, gate, delta_bias, delta_softplus,
        initial_state, segments, lengths,
    )  # fmt: skip
    _check_shapes(scan)
    with torch.autocast(x.device.type, enabled=False):  # the products stay float32
        if not use_triton(backend, x):
            return selective_scan_torch(scan)
        from nanozoo_core.ops.selective_scan_triton import selective_scan_triton

        return selective_scan_triton(scan)


def selective_scan_step(
    state: Tensor, x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, *,
    skip: Tensor | None = None, gate: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One position of the recurrence.

    Args:
        state: (B, D, N) float32.
        x, delta: (B, D); b, c: (B, N); gate: (B, D) or None; the rest as in `selective_scan`.

    Returns: y (B, D) of x's type and the new state.
    """
    steps = step_sizes(delta, delta_bias, delta_softplus, state.dtype)  # (B, D)
    inputs = (steps * x)[..., None] * b[:, None]  # (B, D, N)
    state = torch.exp(steps[..., None] * rates.to(state.dtype)) * state + inputs
    y = (state * c[:, None]).sum(-1)
    if skip is not None:
        y = y + skip * x
    if gate is not None:
        y = y * F.silu(gate.to(state.dtype))
    return y.to(x.dtype), state


def selective_scan_reference(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one position after the other; arguments as in
    `selective_scan`."""
    scan = ScanArguments(*arguments, **options)
    x, delta, rates, b, c, skip, gate, delta_bias = scan[:8]
    dtype, state, segments, valid = wide_dtype(x), scan.first_state(), scan.segments, scan.valid()
    steps = step_sizes(delta, delta_bias, scan.delta_softplus, dtype)
    if valid is not None:
        steps = steps * valid[..., None]
    # unbind, not indexing: the backward of x[:, t] fills a zero tensor of x's size for every t.
    per_position = [tensor.to(dtype).unbind(1) for tensor in (x, steps, b, c)]
    gates = [None] * x.shape[1] if gate is None else gate.unbind(1)
    keeps = None if segments is None else segment_starts(segments).logical_not().to(dtype).unbind(1)
    ys = []
    for t, (x_t, step, b_t, c_t) in enumerate(zip(*per_position, strict=True)):
        if keeps is not None:
            state = state * keeps[t][:, None, None]
        y, state = selective_scan_step(state, x_t, step, rates, b_t, c_t, skip=skip, gate=gates[t])
        ys.append(y)
    return torch.stack(ys, dim=1).to(x.dtype), state


def _check_shapes(scan: ScanArguments) -> None:
    x, rates = scan.x, scan.rates
    if x.dim() != 3 or rates.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and rates {tuple(rates.shape)}; want (B, L, D) and "
            "(D, N) with L >= 1"
        )
    (batch, length, channels), states = x.shape, rates.shape[1]
    check_shapes(
        delta=(scan.delta, (batch, length, channels)),
        rates=(rates, (channels, states)),
        b=(scan.b, (batch, length, states)),
        c=(scan.c, (batch, length, states)),
        skip=(scan.skip, (channels,)),
        gate=(scan.gate, (batch, length, channels)),
        delta_bias=(scan.delta_bias, (channels,)),
        initial_state=(scan.initial_state, (batch, channels, states)),
        segments=(scan.segments, (batch, length)),
        lengths=(scan.lengths, (batch,)),
    )
