"""The experts' arithmetic: every token through its k of E two-layer MLPs, none dropped.

N tokens, D model_dim, E experts, k experts per token, M = N k rows, F width of an expert.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.precision import cast_for_product, row_multiple

Implementation = Literal["auto", "grouped_mm", "loop", "dense"]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]

_grouped_mm: Product | None = getattr(F, "grouped_mm", None)  # since torch 2.10


class Dispatch(NamedTuple):
    """Where the N k rows lie once they are grouped by expert, M in all, those among them that only
    round up a group."""

    tokens: Tensor  # (M,): the token of each grouped row; any for one that rounds up
    places: Tensor  # (N, k): the grouped row of each choice
    ends: Tensor  # (E,) int32: where each expert's rows end
    counts: Tensor  # (E,) int64: rows of each expert


def count_tokens(experts: Tensor, num_experts: int) -> Tensor:
    """(E,) int64: how often each expert is chosen. Unlike bincount it waits for no device."""
    flat = experts.reshape(-1)
    return flat.new_zeros(num_experts).scatter_add_(0, flat, torch.ones_like(flat))


def dispatch(experts: Tensor, num_experts: int, *, multiple: int = 1) -> Dispatch:
    """Sorts the choices (N, k) by expert, keeping the order of tokens within each.

    Args: multiple: of which every group's number of rows is made one.
    """
    flat = experts.reshape(-1)
    order = flat.argsort(stable=True)
    rows = torch.arange(order.numel(), device=order.device)
    counts = count_tokens(flat, num_experts)
    ends, tokens = counts.cumsum(0), order // experts.shape[1]
    if multiple > 1:
        sizes = -(-counts // multiple) * multiple
        rows = rows + (sizes.cumsum(0) - sizes - (ends - counts))[flat[order]]
        ends = sizes.cumsum(0)
        tokens = order.new_zeros(int(ends[-1])).scatter_(0, rows, tokens)
    places = torch.empty_like(order)
    places.scatter_(0, order, rows)
    return Dispatch(tokens, places.view_as(experts), ends.to(torch.int32), counts)


def mix_experts(
    h: Tensor,
    up: Tensor,
    down: Tensor,
    experts: Tensor,
    weights: Tensor,
    implementation: Implementation = "auto",
) -> Tensor:
    """y_t = sum_j weights[t, j] * down[e] relu(up[e] h_t)^2 with e = experts[t, j].

    Under autocast the experts multiply in its precision.

    Args:
        h: (N, D). up: (E, F, D). down: (E, D, F).
        experts: (N, k) int64. weights: (N, k), cast to h's precision.

    Returns: (N, D).
    Raises: ConfigError where grouped_mm is asked for and cannot serve.
    """
    up, down = cast_for_product(up, h), cast_for_product(down, h)
    h = h.to(up.dtype)
    weights = weights.to(h.dtype)
    if implementation == "dense":
        return mix_experts_reference(h, up, down, experts, weights)
    if experts.numel() < up.shape[0] and not torch.is_grad_enabled():
        return _mix_few(h, up, down, experts, weights)
    product = _choose_product(h, up.shape[1], implementation)
    multiple = row_multiple(h.device, h.dtype)
    plan = dispatch(experts, up.shape[0], multiple=multiple)
    return _MixExperts.apply(h, up, down, weights, plan, product)


def mix_experts_reference(
    h: Tensor, up: Tensor, down: Tensor, experts: Tensor, weights: Tensor
) -> Tensor:
    """The definition: all tokens through all experts, E / k times the work."""
    hidden = F.relu(torch.einsum("nd,efd->enf", h, up)).square()
    outputs = torch.einsum("enf,edf->end", hidden, down)
    gates = weights.new_zeros(h.shape[0], up.shape[0]).scatter(1, experts, weights)  # (N, E)
    return torch.einsum("ne,end->nd", gates, outputs)


def _mix_few(h: Tensor, up: Tensor, down: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """For fewer rows than experts, as in decoding: reads the chosen experts' weights alone."""
    chosen = experts.reshape(-1)
    rows = h.repeat_interleave(experts.shape[1], dim=0)[:, :, None]  # (M, D, 1)
    hidden = F.relu(torch.bmm(up[chosen], rows)).square_()  # (M, F, 1)
    outputs = torch.bmm(down[chosen], hidden).view(*experts.shape, -1)  # (N, k, D)
    return (outputs * weights[..., None]).sum(1)


def _choose_product(h: Tensor, expert_dim: int, implementation: Implementation) -> Product:
    if implementation == "loop":
        return _loop_mm
    problem = _why_no_grouped_mm(h, expert_dim)
    if problem is not None and implementation == "grouped_mm":
        raise ConfigError(f"model_cfg.experts_impl=grouped_mm {problem}; use auto or loop")
    if problem is not None or _grouped_mm is None:
        return _loop_mm
    return _grouped_mm_by_ends


def _why_no_grouped_mm(h: Tensor, expert_dim: int) -> str | None:
    """What keeps torch's grouped_mm from serving, or None."""
    if _grouped_mm is None:
        return f"is not in torch {torch.__version__}"
    # On CUDA it is written for bfloat16 alone.
    served = (torch.bfloat16,) if h.is_cuda else (torch.float32, torch.bfloat16, torch.float16)
    if h.device.type not in ("cpu", "cuda") or h.dtype not in served:
        return f"does not multiply {h.dtype} on {h.device.type}"
    if h.is_cuda and torch.cuda.get_device_capability(h.device) < (8, 0):
        return "needs a GPU of compute capability 8.0"
    for size in (h.shape[1], expert_dim):
        if size * h.element_size() % 16 != 0:
            return f"needs rows of a multiple of 16 bytes, not {size} of {h.dtype}"
    return None


def _grouped_mm_by_ends(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    assert _grouped_mm is not None
    return _grouped_mm(a, b, offs=ends)  # type: ignore[call-arg]


def _loop_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """grouped_mm in its two forms: the rows of a (M, K) by their group's matrix of b (E, K, L), to
    (M, L); or the columns of a (K, M) by the rows of b (M, L) of each group, to (E, K, L)."""
    bounds = [0, *ends.tolist()]
    groups = [slice(*pair) for pair in itertools.pairwise(bounds)]
    if b.ndim == 3:
        out = a.new_empty(a.shape[0], b.shape[2])
        for matrix, rows in zip(b, groups, strict=True):
            torch.mm(a[rows], matrix, out=out[rows])
        return out
    out = a.new_empty(len(groups), a.shape[0], b.shape[1])
    for matrix, rows in zip(out, groups, strict=True):
        torch.mm(a[:, rows], b[rows], out=matrix)
    return out


class _MixExperts(torch.autograd.Function):
    """By hand: each grouping is one gather, each ungrouping one gathered sum, weights included.
    Every sum has a fixed order, so results repeat to the bit."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        up: Tensor,
        down: Tensor,
        weights: Tensor,
        plan: Dispatch,
        product: Product,
    ) -> Tensor:
        rows = h.index_select(0, plan.tokens)  # (M, D)
        hidden = F.relu(product(rows, up.mT, plan.ends))  # (M, F)
        outputs = product(hidden * hidden, down.mT, plan.ends)  # (M, D)
        ctx.save_for_backward(rows, hidden, up, down, weights, *plan)
        ctx.product = product
        return F.embedding_bag(plan.places, outputs, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, up, down, weights, *fields = ctx.saved_tensors
        plan, product = Dispatch(*fields), ctx.product
        sorted_weights = weights.new_zeros(len(plan.tokens))  # rows that round up have none
        sorted_weights[plan.places.reshape(-1)] = weights.reshape(-1)
        sorted_weights = sorted_weights[:, None]  # (M, 1)
        activation = hidden * hidden  # (M, F)
        grad_rows = grad.index_select(0, plan.tokens)  # (M, D)
        grad_hidden = product(grad_rows, down, plan.ends)  # (M, F)
        grad_weights = torch.linalg.vecdot(grad_hidden, activation)[plan.places]  # (N, k)
        grad_down = product((grad_rows * sorted_weights).mT, activation, plan.ends)
        grad_hidden.mul_(hidden).mul_(2 * sorted_weights)
        grad_up = product(grad_hidden.mT, rows, plan.ends)
        grad_h = F.embedding_bag(plan.places, product(grad_hidden, up, plan.ends), mode="sum")
        if grad.is_cuda:  # some GPUs' grouped products leave an idle expert's gradient undefined
            idle = (plan.counts == 0)[:, None, None]
            grad_up, grad_down = (g.masked_fill_(idle, 0) for g in (grad_up, grad_down))
        return grad_h, grad_up, grad_down, grad_weights, None, None
