"""SSD, the linear recurrence of Mamba-2: one decay per head, a matrix-valued state.

    h_t = exp(log_decay_t) h_{t-1} + delta_t x_t b_t^T        y_t = h_t c_t + skip x_t

Shapes: B batch, L sequence, H heads, P channels of a head, N state size, Q positions of a chunk,
M chunks. b and c are shared by all heads.
Reference: arXiv 2405.21060, eq. 16-18 (recurrence), section 6 (blocks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    skip: Tensor | None = None,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence over a whole sequence, differentiably in every real argument.

    Args:
        x: (B, L, H, P), any floating type.
        delta: (B, L, H) step sizes; 0 with log_decay 0 leaves the state as it is (padding).
        log_decay: (B, L, H), finite and at most 0.
        b, c: (B, L, N).
        skip: (H,), or None for no direct path.
        initial_state: (B, H, P, N) before the first position, or None for zeros.
        segments: (B, L) integers; the state starts from zero wherever the number changes. The
            initial state belongs to the first segment.
        chunk_size: positions handled by one block of matrix products; a power of two. The best
            is near sqrt(P N); the result does not depend on it but for rounding.

    Returns: y (B, L, H, P) of x's type, and the last state (B, H, P, N) in float32. Decays and
        states are float32 whatever the inputs (float64 if x is).
    Raises: ValueError when the shapes do not fit.
    """
    _check_shapes(x, delta, log_decay, b, c, skip, initial_state, segments)
    with torch.autocast(x.device.type, enabled=False):  # the products stay float32
        return ssd_chunked(
            x,
            delta,
            log_decay,
            b,
            c,
            skip=skip,
            initial_state=initial_state,
            segments=segments,
            chunk_size=chunk_size,
        )


def ssd_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One position of the recurrence.

    Args:
        state: (B, H, P, N) float32.
        x: (B, H, P); delta, log_decay: (B, H); b, c: (B, N); skip: (H,) or None.

    Returns: y (B, H, P) of x's type and the new state.
    """
    inputs = (delta.to(state.dtype)[..., None] * x)[..., None] * b[:, None, None, :]
    state = torch.exp(log_decay.to(state.dtype))[..., None, None] * state + inputs  # (B, H, P, N)
    y = (state * c[:, None, None, :]).sum(-1)  # (B, H, P)
    if skip is not None:
        y = y + skip[:, None] * x
    return y.to(x.dtype), state


def ssd_reference(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    skip: Tensor | None = None,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one position after the other; arguments as in `ssd`."""
    batch, _, heads, channels = x.shape
    dtype = _state_dtype(x)
    if initial_state is None:
        state = torch.zeros(batch, heads, channels, b.shape[-1], dtype=dtype, device=x.device)
    else:
        state = initial_state.to(dtype)
    # unbind, not indexing: the backward of x[:, t] fills a zero tensor of x's size for every t.
    per_position = [tensor.to(dtype).unbind(1) for tensor in (x, delta, log_decay, b, c)]
    keeps = None if segments is None else _starts(segments).logical_not().to(dtype).unbind(1)
    ys = []
    for t, inputs in enumerate(zip(*per_position, strict=True)):
        if keeps is not None:
            state = state * keeps[t][:, None, None, None]
        y, state = ssd_step(state, *inputs, skip=skip)
        ys.append(y)
    return torch.stack(ys, dim=1).to(x.dtype), state


def ssd_chunked(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    skip: Tensor | None = None,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """`ssd` as matrix products inside chunks and a short recurrence between them."""
    length, heads, channels = x.shape[1:]
    dtype = _state_dtype(x)
    size = min(chunk_size, length)
    num_chunks = -(-length // size)
    pad = num_chunks * size - length

    def chunks(tensor: Tensor) -> Tensor:
        """(B, L, ...) -> (B, M, Q, ...); padding of zeros neither writes nor decays the state."""
        if pad:
            tensor = F.pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, pad])
        return tensor.unflatten(1, (num_chunks, size))

    inputs = chunks((x * delta[..., None]).to(dtype))  # (B, M, Q, H, P)
    b, c = chunks(b.to(dtype)), chunks(c.to(dtype))  # (B, M, Q, N)
    cumulative = chunks(log_decay.to(dtype)).cumsum(2)  # (B, M, Q, H)
    total = cumulative[:, :, -1]  # (B, M, H)

    since = cumulative.transpose(2, 3)  # (B, M, H, Q)
    visible = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    to_end, from_start, through = (
        (total[:, :, None] - cumulative).exp(),
        cumulative.exp(),
        total.exp(),
    )
    if segments is not None:
        # Resets are masks: a log decay of -inf would turn the differences below into NaN.
        runs = _starts(segments).cumsum(1)
        runs = torch.cat([runs, runs[:, -1:].expand(-1, pad)], dim=1).unflatten(
            1, (num_chunks, size)
        )
        last = runs[:, :, -1]  # (B, M): the run at the end of a chunk
        before = F.pad(last[:, :-1], (1, 0))  # the run that the incoming state belongs to
        visible = visible & (runs[:, :, :, None] == runs[:, :, None, :])[:, :, None]
        to_end = to_end * (runs == last[..., None])[..., None]
        from_start = from_start * (runs == before[..., None])[..., None]
        through = through * (last == before)[..., None]
    # Masked before exp: afterwards, inf * 0 would be NaN in the backward pass.
    decay = since[..., :, None] - since[..., None, :]  # (B, M, H, Q, Q)
    decay = decay.masked_fill(~visible, -torch.inf).exp()

    scores = decay * (c @ b.mT)[:, :, None]  # (B, M, H, Q, Q)
    y = (scores @ inputs.transpose(2, 3)).transpose(2, 3)  # (B, M, Q, H, P)
    writes = (inputs * to_end[..., None]).flatten(3).mT @ b  # (B, M, H P, N)
    writes = writes.unflatten(2, (heads, channels))

    if initial_state is None:
        state = torch.zeros_like(writes[:, 0])
    else:
        state = initial_state.to(dtype)
    states = []
    for factor, write in zip(through.unbind(1), writes.unbind(1), strict=True):
        states.append(state)
        state = factor[..., None, None] * state + write
    entering = torch.stack(states, dim=1).flatten(2, 3)  # (B, M, H P, N)
    y = y + (c @ entering.mT).unflatten(3, (heads, channels)) * from_start[..., None]
    y = y.flatten(1, 2)[:, :length]
    if skip is not None:
        y = y + skip[:, None] * x
    return y.to(x.dtype), state


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _starts(segments: Tensor) -> Tensor:
    """(B, L) bool: where the segment number differs from the one before (never at position 0)."""
    return F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))


def _check_shapes(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> None:
    if x.dim() != 4 or b.dim() != 3 or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and b {tuple(b.shape)}; want (B, L, H, P) and "
            "(B, L, N) with L >= 1"
        )
    batch, length, heads, channels = x.shape
    expected = {
        "delta": (delta, (batch, length, heads)),
        "log_decay": (log_decay, (batch, length, heads)),
        "b": (b, (batch, length, b.shape[-1])),
        "c": (c, (batch, length, b.shape[-1])),
        "skip": (skip, (heads,)),
        "initial_state": (initial_state, (batch, heads, channels, b.shape[-1])),
        "segments": (segments, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want {shape}")
