"""What Muon does to a stack of matrices, as functions of tensors.

B matrices of one shape, m fan-out (rows, neurons), n fan-in. W weight, G gradient, M momentum, O
orthogonalised update.
References: Jordan et al. 2024, kellerjordan.github.io/posts/muon; NorMuon, arXiv 2510.05491;
cautious weight decay, arXiv 2510.12402.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.optim.orthogonalize import Method, orthogonalize

Scalar = float | Tensor  # a tensor has no axes and lies on the CPU


def muon_update(
    weights: Tensor,
    grads: Tensor,
    momentum: Tensor,
    second_moment: Tensor | None,
    *,
    rate: Scalar,
    decay: Scalar | None,
    mu: Scalar,
    beta2: float | None,
    nesterov: bool,
    orth: Method,
    orth_dtype: torch.dtype,
    cautious: bool,
    eps: float,
) -> None:
    """One step of B equal-shaped matrices; changes all four tensors in place.

    Given as tensors, `rate`, `decay` and `mu` can change without torch.compile compiling anew.

    Args:
        weights, grads, momentum: (B, m, n), at least float32.
        second_moment: (B, m, 1) per row or (B, 1, n) per column; None without NorMuon.
        rate: of the orthogonalised update, the shape's factor included.
        decay: share of W that is removed; None is none.
    """
    momentum.lerp_(grads, 1 - mu)
    update = grads.lerp_(momentum, mu) if nesterov else momentum
    update = orthogonalize(update, method=orth, dtype=orth_dtype, eps=eps).to(weights.dtype)
    if second_moment is not None:
        assert beta2 is not None
        update = equalize_neurons(update, second_moment, beta2)
    if decay is not None and cautious:
        # Zeros are in the mask: a weight without gradient still decays.
        share = (update * weights).ge_(0).mul_(decay)
        weights.addcmul_(weights, share, value=-1)
    elif decay is not None:
        weights.mul_(1 - decay)
    weights.sub_(update.mul_(rate))


def equalize_neurons(update: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """NorMuon: divides each neuron's update by its running root mean square, then restores the
    matrix's Frobenius norm; the restoring makes a bias correction needless.

    Args: update: (B, m, n). second_moment: (B, m, 1) or (B, 1, n), changed in place.
    Reference: arXiv 2510.05491, algorithm 1.
    """
    axis = -1 if second_moment.shape[-1] == 1 else -2
    norms = torch.linalg.vector_norm(update, dim=axis, keepdim=True)
    mean_square = norms.square() / update.shape[axis]
    second_moment.lerp_(mean_square, 1 - beta2)
    scale = second_moment.clamp(min=1e-10).rsqrt()
    # Both norms from the mean squares, without reading the matrix again.
    norm = mean_square.sum(dim=(1, 2), keepdim=True).sqrt()
    scaled_norm = (mean_square * scale.square()).sum(dim=(1, 2), keepdim=True).sqrt()
    return update * (scale * (norm / scaled_norm.clamp(min=1e-10)))


def merge_halves(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers whose upper 16 bits are `high` (bfloat16) and lower ones `low` (uint16).

    A bfloat16 weight alone loses every update below half its last place.
    """
    bits = (high.view(torch.int16).to(torch.int32) << 16) | low.to(torch.int32)
    return bits.view(torch.float32)


def split_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `merge_halves`: bfloat16 by truncation, and the uint16 remainder."""
    bits = x.view(torch.int32)
    high = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    return high, (bits & 0xFFFF).to(torch.uint16)
