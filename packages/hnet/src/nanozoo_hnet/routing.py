"""Where chunks start: the learned router, the static rules, and what holds the rate of chunks.

Shapes: B batch, L positions of a stage, M chunks (right-padded), D model_dim, R rows of the batch.
Reference: arXiv 2507.07955, section 2.2 (routing, ratio loss); section 3.2 (static chunkings).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import widened
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.nn.norms import rms_norm


@dataclass(frozen=True)
class Routing:
    """The decisions of one chunking in one forward pass."""

    probs: Tensor  # (B, L) float32 or wider: p, the probability that a chunk starts here
    boundaries: Tensor  # (B, L) bool: b
    valid: Tensor | None  # (B, L) bool: positions that are not padding; None means all are not

    @property
    def share(self) -> Tensor:
        """F: the share of positions at which a chunk starts, in the type of p, without gradient."""
        return self._mean(self.boundaries.to(self.probs.dtype))

    @property
    def mean_prob(self) -> Tensor:
        """G: the mean of p."""
        return self._mean(self.probs)

    def _mean(self, values: Tensor) -> Tensor:
        """Of (B, L) values over the positions that are not padding."""
        if self.valid is None:
            return values.mean()
        return (values * self.valid).sum() / self.valid.sum()

    def counts(self) -> Tensor:
        """(2,) int64: boundaries, and positions that are not padding."""
        positions = torch.ones_like(self.boundaries) if self.valid is None else self.valid
        return torch.stack([self.boundaries.sum(), positions.sum()])

    def means_of(self, totals: Tensor | None, num_parts: int) -> tuple[Tensor, Tensor]:
        """F and G, or what stands for them where this is one of `num_parts` parts of a batch with
        these `counts` in all: F of the whole, and the part's sum of p over the mean number of
        positions of a part, so that the mean over the parts is G of the whole."""
        if totals is None:
            return self.share, self.mean_prob
        weight = num_parts * self.counts()[1] / totals[1]
        return (totals[0] / totals[1]).to(self.probs.dtype), weight * self.mean_prob


def ratio_loss(share: Tensor, mean_prob: Tensor, ratio: float) -> Tensor:
    """Pulls the share of boundaries towards 1 / ratio (N), section 2.2.3.

    Returns: R = N/(N-1) ((N-1) F G + (1-F)(1-G)) of `share` F, which has no gradient, and of
    `mean_prob` G. R is 1 where both are 1/N, but that is a saddle: it can be less.
    """
    started, passed = (ratio - 1) * share * mean_prob, (1 - share) * (1 - mean_prob)
    return ratio / (ratio - 1) * (started + passed)


# -- deciding -----------------------------------------------------------------------------------


@dataclass
class RouterState:
    """What a chunking remembers of each row while it reads on, one value or vector per row."""

    @property
    def num_bytes(self) -> int:
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def take(self, rows: Tensor | None) -> RouterState:
        """The state of some rows."""
        if rows is None:
            return self
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    def put(self, rows: Tensor | None, new: RouterState) -> None:
        """Replaces the state of some rows."""
        for f in fields(self):
            value = getattr(new, f.name)
            if rows is not None:
                value = getattr(self, f.name).index_copy(0, rows, value)
            setattr(self, f.name, value)


@dataclass
class LastVector(RouterState):
    vector: Tensor  # (B, D): the encoder's output at the last position
    seen: Tensor  # (B,) bool: there is one


@dataclass
class Count(RouterState):
    steps: Tensor  # (B,) int64: positions read


@dataclass
class LastByte(RouterState):
    is_space: Tensor  # (B,) bool: the last token was space-like; at first nothing was
    seen: Tensor  # (B,) bool


class Router(nn.Module):
    """p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2: a chunk starts where the encoder's output turns.

    The paper has q at the current and k at the previous position; this is the released order.
    """

    is_learned = True

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(model_dim, model_dim, bias=False)
        self.key = nn.Linear(model_dim, model_dim, bias=False)
        for weight in (self.query.weight, self.key.weight):
            weight.keeps_float32 = True  # type: ignore[attr-defined]
        self.init_weights()

    def init_weights(self) -> None:
        """Both start as the identity: p compares neighbours as they are."""
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.key.weight)

    def forward(self, x: Tensor, tokens: Tensor, starts: Tensor | None) -> Tensor:
        """p (B, L), 1 at the first position and at `starts` (B, L).

        Float32 even under autocast: steps of bfloat16 near 0.5 would flip decisions.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = widened(x)
            probs = _turn(_unit(self.query(x))[:, :-1], _unit(self.key(x))[:, 1:])
        probs = F.pad(probs, (1, 0), value=1.0)
        return probs if starts is None else probs.masked_fill(starts, 1.0)

    def init_state(self, batch_size: int, device: torch.device) -> LastVector:
        weight = self.query.weight
        return LastVector(
            vector=torch.zeros(batch_size, weight.shape[0], device=device, dtype=weight.dtype),
            seen=torch.zeros(batch_size, dtype=torch.bool, device=device),
        )

    def state_after(self, x: Tensor, tokens: Tensor, lengths: Tensor) -> LastVector:
        """The state behind each row's end; x (B, L, D), lengths (B,) at least 1."""
        rows = torch.arange(x.shape[0], device=x.device)
        return LastVector(vector=x[rows, lengths - 1], seen=torch.ones_like(lengths).bool())

    def step(self, x: Tensor, tokens: Tensor, state: RouterState) -> tuple[Tensor, RouterState]:
        """One position of some rows: x (R, D) -> p (R,) and the new state."""
        assert isinstance(state, LastVector)
        with torch.autocast(x.device.type, enabled=False):
            x = widened(x)
            probs = _turn(_unit(self.query(state.vector.to(x.dtype))), _unit(self.key(x)))
        probs = torch.where(state.seen, probs, torch.ones_like(probs))
        return probs, LastVector(x, torch.ones_like(state.seen))


class FixedStride(nn.Module):
    """A chunk starts at every N-th position, counted from the document's start."""

    is_learned = False

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, tokens: Tensor, starts: Tensor | None) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])  # (B, L)
        if starts is not None:
            positions = positions - (positions * starts).cummax(1).values
        return (positions % self.stride == 0).float()

    def init_state(self, batch_size: int, device: torch.device) -> Count:
        return Count(torch.zeros(batch_size, dtype=torch.int64, device=device))

    def state_after(self, x: Tensor, tokens: Tensor, lengths: Tensor) -> Count:
        return Count(lengths.clone())

    def step(self, x: Tensor, tokens: Tensor, state: RouterState) -> tuple[Tensor, RouterState]:
        assert isinstance(state, Count)
        return (state.steps % self.stride == 0).float(), Count(state.steps + 1)


class SpaceStarts(nn.Module):
    """A chunk starts at a space-like byte behind one that is not (SpaceByte, arXiv 2404.14408)."""

    is_learned = False

    def forward(self, x: Tensor, tokens: Tensor, starts: Tensor | None) -> Tensor:
        spaces = is_space_like(tokens)
        begins = F.pad(spaces[:, 1:] & ~spaces[:, :-1], (1, 0), value=True)
        return (begins if starts is None else begins | starts).float()

    def init_state(self, batch_size: int, device: torch.device) -> LastByte:
        nothing = torch.zeros(batch_size, dtype=torch.bool, device=device)
        return LastByte(is_space=nothing, seen=nothing)

    def state_after(self, x: Tensor, tokens: Tensor, lengths: Tensor) -> LastByte:
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        last = tokens[rows, lengths - 1]
        return LastByte(is_space_like(last), torch.ones_like(last).bool())

    def step(self, x: Tensor, tokens: Tensor, state: RouterState) -> tuple[Tensor, RouterState]:
        assert isinstance(state, LastByte)
        spaces = is_space_like(tokens)
        begins = ~state.seen | (spaces & ~state.is_space)
        return begins.float(), LastByte(spaces, torch.ones_like(spaces))


def is_space_like(tokens: Tensor) -> Tensor:
    """Ids that are neither an ASCII letter or digit nor a UTF-8 continuation byte."""
    table = torch.ones(256, dtype=torch.bool)
    table[0x80:0xC0] = False
    table[[byte for byte in range(128) if chr(byte).isalnum()]] = False
    return table.to(tokens.device)[tokens.clamp(max=255)] | (tokens > 255)


# -- packing ------------------------------------------------------------------------------------


def chunk_order(boundaries: Tensor, num_chunks: int) -> Tensor:
    """(B, M): positions of each row with the boundaries first, in order, then others as padding.

    All networks are causal, so padding on the right needs no mask: nothing reads it.
    """
    return torch.argsort((~boundaries).byte(), dim=1, stable=True)[:, :num_chunks]


@uncompiled(with_callees=True)
def take_positions(x: Tensor, order: Tensor) -> Tensor:
    """x (B, L, D) at positions (B, M) that are distinct within a row -> (B, M, D)."""
    return _TakePositions.apply(x, order)


class _TakePositions(torch.autograd.Function):
    """Distinct positions allow a backward pass that copies rows instead of adding them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, order: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        flat = (rows * x.shape[1] + order).flatten()
        ctx.save_for_backward(flat)
        ctx.shape = x.shape  # type: ignore[attr-defined]
        return x.flatten(0, 1).index_select(0, flat).view(*order.shape, -1)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors  # type: ignore[attr-defined]
        out = grad.new_zeros(ctx.shape)  # type: ignore[attr-defined]
        out.flatten(0, 1).index_copy_(0, flat, grad.flatten(0, 1))
        return out, None


def _unit(x: Tensor) -> Tensor:
    """x scaled to length sqrt(D), whatever its length was."""
    return rms_norm(x, eps=1e-12)


def _turn(query: Tensor, key: Tensor) -> Tensor:
    """(1 - cos) / 2 of vectors of length sqrt(D)."""
    cos = torch.linalg.vecdot(query, key) / query.shape[-1]
    return ((1 - cos) / 2).clamp(0.0, 1.0)
