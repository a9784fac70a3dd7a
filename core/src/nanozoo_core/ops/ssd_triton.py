"""The SSD scan on a GPU: what the kernels of `ssd_kernels.py` are given, and how they are launched.

The reference and the fast torch form are in `ssd.py`, which chooses between them and this one.

Shapes: B batch, L sequence, H heads, P channels of a head, N state size, Q positions of a chunk,
M chunks, T positions of a tile.
Reference: arXiv 2405.21060, section 6.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.ops import ssd_kernels as kernels
from nanozoo_core.ops.backend import segment_runs, unit_stride
from nanozoo_core.ops.optional_triton import product_precision


def ssd_triton(
    tensors: tuple[Tensor, ...], segments: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The scan on a GPU: arguments and results as in `ssd_chunked`. x, b and c may be views of a
    larger tensor (their last stride must be 1, or they are copied).

    Raises: ValueError when chunk_size is not a power of two from 16 up.
    """
    if chunk_size < 16 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size={chunk_size} must be a power of two from 16 up")
    x, delta, log_decay, b, c, skip, initial_state = tensors
    y, states = _SSD.apply(
        *(unit_stride(t) for t in (x, b, c)),
        *(t.float() for t in (delta, log_decay, skip, initial_state)),
        segment_runs(x, segments),
        chunk_size,
    )
    return y, states


PAIR_CONSTANTS = (
    "N", "Q", "TILE_T", "TILE_N", "PRECISION", "NARROW", "num_warps", "num_stages"
)  # fmt: skip


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        y, states = _forward(x, b, c, *rest)
        delta, log_decay, skip, _, runs, chunk_size = rest
        ctx.save_for_backward(x, b, c, delta, log_decay, skip, runs, states)
        ctx.chunk_size = chunk_size
        return y, states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        grads = _backward(
            grad_y.contiguous(), grad_state.contiguous(), *ctx.saved_tensors, ctx.chunk_size
        )
        return (*grads, None, None)


class _Positions(NamedTuple):
    """Per-position factors of all chunks, each (B, H, M Q) float32; padding neither writes, reads
    nor decays."""

    delta: Tensor
    cumulated: Tensor  # log decays from the start of the chunk up to and with the position
    from_start: Tensor  # of the incoming state, when the position reads it
    to_end: Tensor  # of the position's write, at the end of the chunk
    through: Tensor  # (B, H, M): of the incoming state, at the end of the chunk
    runs: Tensor  # (B, M Q) int32


def _positions(delta: Tensor, log_decay: Tensor, runs: Tensor, chunk_size: int) -> _Positions:
    pad = -delta.shape[1] % chunk_size
    delta = F.pad(delta.mT, (0, pad)).contiguous()
    log_decay = F.pad(log_decay.mT, (0, pad)).unflatten(2, (-1, chunk_size))  # (B, H, M, Q)
    runs = torch.cat([runs, runs[:, -1:].expand(-1, pad)], dim=1)  # (B, M Q)
    run = runs.unflatten(1, (-1, chunk_size))[:, None]  # (B, 1, M, Q)
    last = run[..., -1:]
    before = F.pad(last[:, :, :-1], (0, 0, 1, 0))  # run 0 holds position 0 and the initial state
    cumulated = log_decay.cumsum(3)
    total = cumulated[..., -1:]
    return _Positions(
        delta=delta,
        cumulated=cumulated.flatten(2),
        from_start=(cumulated.exp() * (run == before)).flatten(2),
        to_end=((total - cumulated).exp() * (run == last)).flatten(2),
        through=(total.exp() * (last == before)).flatten(2),
        runs=runs.contiguous(),
    )


class _Launch:
    """Grids, tile sizes and strides of one problem.

    Tiles of 64 positions, 64 of N and all of P, of 4 warps, are a product of one sm_90 warpgroup.
    Products of float32 take three of TF32 and more registers: half as many positions and N. The
    numbers of registers that follow are in core/benchmarks/kernel_resources.csv.
    """

    def __init__(self, x: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> None:
        self.batch, self.length, self.heads, self.channels = x.shape
        self.state_dim = b.shape[-1]
        self.chunks = triton.cdiv(self.length, chunk_size)
        self.chunk_size = chunk_size
        most = 32 if x.dtype == torch.float32 else 64
        self.tile_n = min(most, max(16, triton.next_power_of_2(self.state_dim)))
        tile_t, tile_p = min(most, chunk_size), max(16, triton.next_power_of_2(self.channels))
        self.tiles_t = chunk_size // tile_t
        self.tiles_n = triton.cdiv(self.state_dim, self.tile_n)
        self.sizes = (self.length, self.chunks, self.heads)
        self.constants: dict[str, Any] = {
            "P": self.channels,
            "Q": chunk_size,
            "TILE_T": tile_t,
            "TILE_P": tile_p,
            "PRECISION": product_precision(x.dtype),
            # The interpreter cannot multiply bfloat16.
            "NARROW": x.is_cuda and all(t.dtype == torch.bfloat16 for t in (x, b, c)),
            "num_warps": 4,
            "num_stages": 2,
        }
        self.state_constants = self.constants | {"N": self.state_dim, "TILE_N": self.tile_n}
        # Where P is summed over, and its products take many registers, by parts.
        self.part = {"TILE_P": 16 if most == 32 else tile_p}

    def empty_states(self, like: Tensor) -> Tensor:
        shape = (self.batch, self.chunks + 1, self.heads, self.channels, self.state_dim)
        return torch.empty(shape, device=like.device, dtype=torch.float32)

    def empty_pairs(self, like: Tensor) -> Tensor:
        shape = (self.batch, self.chunks, self.chunk_size, self.chunk_size)
        return torch.empty(shape, device=like.device, dtype=torch.float32)

    def scan(
        self, values: Tensor, scale: Tensor, vectors: Tensor, boundary: Tensor, through: Tensor, *,
        reverse: bool,
    ) -> Tensor:  # fmt: skip
        """The states between chunks, or their gradients, (B, M + 1, H, P, N)."""
        states = self.empty_states(values)
        kernels.chunk_writes[(self.batch * self.chunks, self.heads, self.tiles_n)](
            values, scale, vectors, states, *self.sizes, *values.stride()[:3],
            *vectors.stride()[:2], **self.state_constants,
        )  # fmt: skip
        size = self.channels * self.state_dim
        kernels.pass_states[(self.batch * self.heads, triton.cdiv(size, 1024))](
            states, boundary.contiguous(), through, self.chunks, self.heads,
            SIZE=size, BLOCK=1024, REVERSE=reverse,
        )  # fmt: skip
        return states

    def pair_products(self, c: Tensor, b: Tensor) -> Tensor:
        """c b^T of every chunk, (B, M, Q, Q), on and below the diagonal."""
        products = self.empty_pairs(c)
        kernels.pair_products[(self.batch * self.chunks, self.tiles_t, self.tiles_t)](
            c, b, products, self.length, self.chunks, *c.stride()[:2], *b.stride()[:2],
            **{name: self.state_constants[name] for name in PAIR_CONSTANTS},
        )  # fmt: skip
        return products

    def mix(
        self, query: Tensor, products: Tensor, value: Tensor, weight: Tensor, states: Tensor,
        scale: Tensor, at: _Positions, *, factor: Tensor | None = None, skip: Tensor | None = None,
        direct: Tensor | None = None, partner: Tensor | None = None, reverse: bool = False,
    ) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
        """`kernels.mix`: the result if `direct` is given, and the two dots if `partner` is."""
        result = None
        if direct is not None:
            result = torch.empty_like(direct, memory_format=torch.contiguous_format)
        dots, direct_dots = torch.empty_like(scale), torch.empty_like(scale)
        absent = scale  # stands for pointers that the kernel does not touch
        optional = (absent if t is None else t for t in (factor, skip, direct, partner, result))
        kernels.mix[(self.batch * self.chunks, self.heads, self.tiles_t)](
            query, products, value, weight, states, scale, at.cumulated, at.runs, *optional,
            dots, direct_dots, *self.sizes, *query.stride()[:2], *value.stride()[:3],
            *(value if direct is None else direct).stride()[:3],
            *(value if partner is None else partner).stride()[:3],
            REVERSE=reverse, HAS_RESULT=direct is not None, HAS_DOTS=partner is not None,
            **self.state_constants,
        )  # fmt: skip
        return result, dots, direct_dots

    def pair_sums(self, gradient: Tensor, value: Tensor, at: _Positions) -> Tensor:
        pairs = self.empty_pairs(value)
        kernels.pair_sums[(self.batch * self.chunks, self.tiles_t, self.tiles_t)](
            gradient, value, at.delta, at.cumulated, at.runs, pairs, *self.sizes,
            *gradient.stride()[:3], *value.stride()[:3], **self.constants | self.part,
        )  # fmt: skip
        return pairs

    def vector_gradients(
        self, values: Tensor, scale: Tensor, states: Tensor, pairs: Tensor, vectors: Tensor, *,
        reverse: bool,
    ) -> Tensor:  # fmt: skip
        result = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        kernels.vector_gradients[(self.batch * self.chunks, self.tiles_t, self.tiles_n)](
            values, scale, states, pairs, vectors, result, *self.sizes, *values.stride()[:3],
            *vectors.stride()[:2], REVERSE=reverse, **self.state_constants | self.part,
        )  # fmt: skip
        return result


# Opaque to torch.compile: the kernels run as they are, and the graph around them stays whole.
@torch.library.custom_op("nanozoo::ssd_forward", mutates_args=())
def _forward(
    x: Tensor, b: Tensor, c: Tensor, delta: Tensor, log_decay: Tensor, skip: Tensor,
    initial_state: Tensor, runs: Tensor, chunk_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) and the states before every chunk and behind the last, (B, M + 1, H, P, N)."""
    launch = _Launch(x, b, c, chunk_size)
    at = _positions(delta, log_decay, runs, chunk_size)
    states = launch.scan(x, at.delta * at.to_end, b, initial_state, at.through, reverse=False)
    one = torch.ones_like(at.delta)
    y, _, _ = launch.mix(
        c,
        launch.pair_products(c, b),
        x,
        at.delta,
        states,
        at.from_start,
        at,
        factor=one,
        skip=skip,
        direct=x,
    )
    assert y is not None
    return y, states


@_forward.register_fake
def _(x, b, c, delta, log_decay, skip, initial_state, runs, chunk_size):
    batch, length, heads, channels = x.shape
    chunks = (length + chunk_size - 1) // chunk_size
    states = x.new_empty(batch, chunks + 1, heads, channels, b.shape[-1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), states


@torch.library.custom_op("nanozoo::ssd_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_state: Tensor, x: Tensor, b: Tensor, c: Tensor, delta: Tensor,
    log_decay: Tensor, skip: Tensor, runs: Tensor, states: Tensor, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, b, c, delta, log_decay, skip and the initial state."""
    launch = _Launch(x, b, c, chunk_size)
    at = _positions(delta, log_decay, runs, chunk_size)
    writes, one = at.delta * at.to_end, torch.ones_like(at.delta)
    products = launch.pair_products(c, b)
    grads = launch.scan(grad_y, at.from_start, c, grad_state, at.through, reverse=True)
    grad_x, grad_delta, direct = launch.mix(
        b, products, grad_y, one, grads, at.to_end, at,
        factor=at.delta, skip=skip, direct=grad_y, partner=x, reverse=True,
    )  # fmt: skip
    assert grad_x is not None
    pairs = launch.pair_sums(grad_y, x, at)
    grad_c = launch.vector_gradients(grad_y, at.from_start, states, pairs, b, reverse=False)
    grad_b = launch.vector_gradients(x, writes, grads, pairs, c, reverse=True)

    # The cumulated log decay of t scales what t reads and divides what t writes; that of the last
    # position scales the state handed on. What t reads is computed anew: y, rounded and with the
    # skip in it, would leave few digits.
    _, reads, _ = launch.mix(c, products, x, at.delta, states, at.from_start, at, partner=grad_y)
    grad_cumulated = (reads - at.delta * grad_delta).unflatten(2, (-1, chunk_size))
    handed_on = grads[:, 1:].flatten(3)[..., None, :] @ states[:, 1:].flatten(3)[..., None]
    grad_cumulated[..., -1] += handed_on.flatten(2).mT  # (B, H, M)
    grad_log = grad_cumulated.flip(3).cumsum(3).flip(3).flatten(2)

    length = x.shape[1]
    return (
        grad_x,
        grad_b,
        grad_c,
        grad_delta[..., :length].mT.contiguous(),
        grad_log[..., :length].mT.contiguous(),
        direct.sum((0, 2)),
        grads[:, 0].clone(),
    )


@_backward.register_fake
def _(grad_y, grad_state, x, b, c, delta, log_decay, skip, runs, states, chunk_size):
    tensors = (x, b, c, delta, log_decay, skip, grad_state)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)
