"""The selective scan in plain torch, fast on a CPU; `selective_scan.py` has the reference.

Shapes: B batch, L sequence, D channels, N state size, T positions of a block, M blocks. Inside, the
states are (N, D): then all products run along contiguous channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.ops.backend import segment_starts, valid_positions

# A block of 2^18 values is 1 MB, a core's second-level cache. Smaller ones pay more for calls.
BLOCK_VALUES = 2**18
BLOCK_LENGTHS = (16, 64)  # least and most positions of a block, whatever its size
ROW_VALUES = 2**15  # rows are taken together until a position has so many values


class ScanArguments(NamedTuple):
    """Those of `selective_scan`, where they are explained."""

    x: Tensor
    delta: Tensor
    rates: Tensor
    b: Tensor
    c: Tensor
    skip: Tensor | None = None
    gate: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    initial_state: Tensor | None = None
    segments: Tensor | None = None
    lengths: Tensor | None = None

    def first_state(self) -> Tensor:
        """The initial state (B, D, N), zeros where none is given."""
        if self.initial_state is not None:
            return self.initial_state.to(wide_dtype(self.x))
        shape = (self.x.shape[0], *self.rates.shape)
        return torch.zeros(shape, dtype=wide_dtype(self.x), device=self.x.device)

    def valid(self) -> Tensor | None:
        """(B, L) bool: the positions before each row's end, None where all are."""
        return None if self.lengths is None else valid_positions(self.x, self.lengths)


@uncompiled(with_callees=True)
def selective_scan_torch(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """`selective_scan` in plain torch with a hand-written backward pass (differentiable once).

    Its speed beside plain loops is in core/benchmarks/ssm.py.
    """
    x, delta, rates, b, c, skip, gate, delta_bias = scan[:8]
    dtype = wide_dtype(x)
    if skip is None:
        skip = torch.zeros(x.shape[2], dtype=dtype, device=x.device)
    y, state = _SelectiveScan.apply(
        *(tensor.to(dtype) for tensor in (x, delta, rates, b, c, skip)),
        scan.first_state(),
        None if gate is None else gate.to(dtype),
        None if delta_bias is None else delta_bias.to(dtype),
        scan.delta_softplus,
        None if scan.segments is None else segment_starts(scan.segments),
        scan.valid(),
    )
    return y.to(x.dtype), state


class _SelectiveScan(torch.autograd.Function):
    """Block after block of positions, in buffers (T, B, N, D) that stay in cache: decays and inputs
    are made by products over the whole block, then one fused multiply-add per position runs the
    recurrence in place. Saved are the states before each block, from which the backward pass makes
    all others again. Rows of a large batch go one group after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        rates: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor,
        initial_state: Tensor,
        gate: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        starts: Tensor | None,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        steps = step_sizes(delta, delta_bias, delta_softplus, x.dtype)  # (B, L, D)
        if valid is not None:
            steps = steps * valid[..., None]
        u = steps * x
        tiling = _Tiling(x, rates)
        y = torch.empty_like(u)
        states = x.new_empty(tiling.num_blocks + 1, *initial_state.mT.shape)  # (M + 1, B, N, D)
        states[0] = initial_state.mT
        for rows in tiling.rows:
            part = _Rows(tiling, steps[rows], u[rows], b[rows], _of(starts, rows), num_buffers=2)
            y_rows = torch.empty_like(part.u)
            reads, outputs = (tiling.as_rows(t) for t in (_time_first(c[rows]), y_rows))
            for m in range(tiling.num_blocks):
                block = part.recur(m, states[m, rows])
                states[m + 1, rows] = block.states[-1]
                torch.bmm(reads[m], block.h_matrices, out=outputs[m])
            y[rows] = y_rows.transpose(0, 1)
        y.addcmul_(x, skip)
        before_gate = None if gate is None else y
        ctx.save_for_backward(x, steps, rates, b, c, skip, gate, starts, valid, states, before_gate)
        ctx.delta_bias, ctx.delta_softplus = delta_bias is not None, delta_softplus
        return y if gate is None else y * F.silu(gate), states[-1].mT.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        """lam_t, the gradient of h_t, follows lam_t = g_t c_t + a_{t+1} lam_{t+1}; that of the
        exponent d_t A is a_t h_{t-1} lam_t."""
        x, steps, rates, b, c, skip, gate, starts, valid, states, y = ctx.saved_tensors
        grad_gate, g = None, grad_y
        if gate is not None:
            grad_gate = torch.ops.aten.silu_backward(grad_y * y, gate)
            g = grad_y * F.silu(gate)
        u = steps * x
        tiling = _Tiling(x, rates)
        grad_u, grad_steps, grad_b, grad_c = (torch.empty_like(t) for t in (u, u, b, c))
        grad_rates, grad_initial = torch.zeros_like(tiling.rates), torch.empty_like(states[0])
        for rows in tiling.rows:
            part = _Rows(tiling, steps[rows], u[rows], b[rows], _of(starts, rows), num_buffers=3)
            grads = _RowGradients(part, _time_first(g[rows]), _time_first(c[rows]), grad_rates)
            later = grad_last[rows].mT  # of the state behind a block, (B, N, D)
            for m in reversed(range(tiling.num_blocks)):
                before = states[m, rows]
                later = grads.add(m, part.recur(m, before), before, later)
            grad_initial[rows] = later
            for whole, grad in (
                (grad_u, grads.u),
                (grad_steps, grads.steps),
                (grad_b, grads.b),
                (grad_c, grads.c),
            ):
                whole[rows] = grad.transpose(0, 1)
        grad_steps.addcmul_(grad_u, x)
        if ctx.delta_softplus:
            grad_steps.mul_(torch.expm1(-steps).neg_())  # the sigmoid; 0 at padding
        elif valid is not None:
            grad_steps.mul_(valid[..., None])
        return (
            grad_u.mul_(steps).addcmul_(g, skip),
            grad_steps,
            grad_rates.mT,
            grad_b,
            grad_c,
            (g * x).sum((0, 1)),
            grad_initial.mT,
            grad_gate,
            grad_steps.sum((0, 1)) if ctx.delta_bias else None,
            None,
            None,
            None,
        )


class _Tiling:
    """How a scan is cut: groups of rows, and blocks of positions. Views of all blocks are made at
    once, before the loop over them."""

    def __init__(self, x: Tensor, rates: Tensor) -> None:
        batch, length, _ = x.shape
        self.rates = rates.mT.contiguous()  # (N, D)
        self.num_rows = max(1, min(batch, ROW_VALUES // rates.numel()))
        least, most = BLOCK_LENGTHS
        size = BLOCK_VALUES // (self.num_rows * rates.numel())
        self.size = min(max(size, least), most, length)
        starts = range(0, batch, self.num_rows)
        self.rows = [slice(at, min(at + self.num_rows, batch)) for at in starts]
        self.num_blocks = -(-length // self.size)
        self.last_size = length - (self.num_blocks - 1) * self.size

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """(L, ..) -> blocks (T, ..)."""
        return x.split(self.size)

    def as_rows(self, x: Tensor) -> tuple[Tensor, ...]:
        """(L, B, C) -> blocks (T B, 1, C), for products with matrices."""
        return x.view(-1, 1, x.shape[2]).split(self.size * x.shape[1])


class _Block:
    """The buffers of one block, (T, B, N, D): decays a, states h, and for the backward pass lam."""

    def __init__(self, memory: Tensor, length: int) -> None:
        self.a, self.h = memory[0, :length], memory[1, :length]
        self.decays, self.states = self.a.unbind(0), self.h.unbind(0)
        self.h_matrices = self.h.flatten(0, 1)  # (T B, N, D)
        if len(memory) == 3:
            self.lam = memory[2, :length]
            self.lams = self.lam.unbind(0)
            self.lam_matrices = self.lam.flatten(0, 1)
            self.after_first, self.before_last = self.a[1:], self.h[:-1]
            self.a_matrix = self.a.flatten(2).flatten(0, 1).mT  # (N D, T B)
            self.ones = memory.new_ones(self.a_matrix.shape[1])


class _Rows:
    """A group of rows, time first, with buffers for one block of positions."""

    def __init__(
        self,
        tiling: _Tiling,
        steps: Tensor,
        u: Tensor,
        b: Tensor,
        starts: Tensor | None,
        *,
        num_buffers: int,
    ) -> None:
        self.tiling = tiling
        self.log2_rates = tiling.rates * math.log2(math.e)  # on a CPU exp2 takes a third of exp
        steps, self.u, self.b = _time_first(steps), _time_first(u), _time_first(b)
        self.steps = tiling.cut(steps[:, :, None])  # (T, B, 1, D)
        self.u_blocks = tiling.cut(self.u[:, :, None])
        self.b_blocks = tiling.cut(self.b[..., None])  # (T, B, N, 1)
        self.starts = None if starts is None else tiling.cut(starts.mT)
        memory = u.new_empty(num_buffers, tiling.size, u.shape[0], *tiling.rates.shape)
        self.full, self.last = _Block(memory, tiling.size), _Block(memory, tiling.last_size)

    def recur(self, m: int, before: Tensor) -> _Block:
        """Decays and states of block m, given the state before it, (B, N, D)."""
        block = self.full if m + 1 < self.tiling.num_blocks else self.last
        torch.mul(self.steps[m], self.log2_rates, out=block.a).exp2_()
        if self.starts is not None:
            block.a[self.starts[m]] = 0.0
        torch.mul(self.u_blocks[m], self.b_blocks[m], out=block.h)
        for decay, state in zip(block.decays, block.states, strict=True):
            before = state.addcmul_(decay, before)
        return block


class _RowGradients:
    """Gradients of a group of rows, filled block by block from the end: of u = steps x, of the
    steps in the exponents, of b and c, all time first; and added to that of the rates, (N, D)."""

    def __init__(self, part: _Rows, g: Tensor, c: Tensor, rates: Tensor) -> None:
        tiling = part.tiling
        self.part = part
        self.u, self.steps = torch.empty_like(part.u), torch.empty_like(part.u)  # (L, B, D)
        self.b, self.c = torch.empty_like(c), torch.empty_like(c)  # (L, B, N)
        self.rates = rates.view(-1)
        self.g_blocks, self.c_blocks = tiling.cut(g[:, :, None]), tiling.cut(c[..., None])
        self.step_slots = tiling.cut(self.steps)
        self.u_slots, self.b_slots, self.c_slots, self.g_rows, self.u_rows, self.b_rows = (
            tiling.as_rows(t) for t in (self.u, self.b, self.c, g, part.u, part.b)
        )

    def add(self, m: int, block: _Block, before: Tensor, later: Tensor) -> Tensor:
        """Those of block m, just after `recur`: from the gradient of the state behind it, `later`
        (B, N, D), to that of the state `before` it."""
        a, h, decays, lams = block.a, block.h, block.decays, block.lams
        torch.mul(self.g_blocks[m], self.c_blocks[m], out=block.lam)
        lams[-1].add_(later)
        for t in range(len(lams) - 1, 0, -1):
            lams[t - 1].addcmul_(decays[t], lams[t])
        # A row times the transpose: the product with a column takes ten times as long.
        torch.bmm(self.g_rows[m], block.h_matrices.mT, out=self.c_slots[m])
        torch.bmm(self.u_rows[m], block.lam_matrices.mT, out=self.b_slots[m])
        torch.bmm(self.b_rows[m], block.lam_matrices, out=self.u_slots[m])
        a.mul_(block.lam)
        later = decays[0].clone()
        block.after_first.mul_(block.before_last)
        decays[0].mul_(before)
        torch.sum(torch.mul(a, self.part.tiling.rates, out=h), 2, out=self.step_slots[m])
        a.mul_(self.part.steps[m])
        self.rates.addmv_(block.a_matrix, block.ones)
        return later


def _of(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _time_first(x: Tensor) -> Tensor:
    """(B, L, ..) -> (L, B, ..), contiguous."""
    return x.transpose(0, 1).contiguous()


def step_sizes(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, dtype: torch.dtype
) -> Tensor:
    steps = delta.to(dtype)
    if delta_bias is not None:
        steps = steps + delta_bias.to(dtype)
    return F.softplus(steps) if delta_softplus else steps
