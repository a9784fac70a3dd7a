"""Exact scores of the enumerable toy source, and quadrature over time.

V = 3 symbols, three positions; S states (27 sequences, or 64 with masks); P (x_0, x_t) pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.exact import enumerate_sequences
from nanozoo_sedd.uniform import ScoreSums, flow

VOCAB = toy.VOCAB_SIZE
SEQUENCES = toy.sequences()  # (27, 3)
MASKED_STATES = enumerate_sequences(VOCAB + 1, 3)  # (64, 3)


def transition(sigma: float, vocab_size: int = VOCAB) -> Tensor:
    """e^{sigma R} (V, V)."""
    return flow(torch.eye(vocab_size, dtype=torch.float64), sigma)


def forward_law(sigma: float) -> Tensor:
    """q(x_t | x_0) for all sequences, (27 x_0, 27 x_t)."""
    matrix = transition(sigma)
    return matrix[SEQUENCES[:, None], SEQUENCES[None]].prod(-1)


def uniform_log_scores(sigma: float) -> Tensor:
    """log p_t(x with y at i) / p_t(x) for each sequence x, (27, 3, V)."""
    marginal = toy.joint() @ forward_law(sigma)  # (27,)
    changed = SEQUENCES[:, None, None].expand(27, 3, VOCAB, 3).clone()
    for i in range(3):
        changed[:, i, :, i] = torch.arange(VOCAB)
    return (marginal[toy.code(changed)] / marginal[:, None, None]).log()


def uniform_log_scores_of(windows: Tensor, sigma: Tensor) -> Tensor:
    """The same for windows (B, 3), each at its own sigma (B,): (B, 3, V)."""
    eye = torch.eye(VOCAB, dtype=torch.float64)
    keep = torch.exp(-sigma)[:, None, None]
    matrix = keep * eye + (1 - keep) / VOCAB  # (B, V, V)
    towards = matrix[:, SEQUENCES]  # (B, 27, 3, V): of each x_0's symbols
    own = towards.gather(-1, windows[:, None, :, None].expand(-1, 27, -1, 1))[..., 0]  # (B, 27, 3)
    others = own.roll(1, -1) * own.roll(-1, -1)
    mass = torch.einsum("k,bki,bkiv->biv", toy.joint(), others, towards)
    return (mass / mass.gather(-1, windows[..., None])).log()


def sums_of(log_scores: Tensor, corrupted: Tensor, tokens: Tensor) -> ScoreSums:
    """From all log s (..., V) at the tokens (...), whose own entries are 0."""
    log_true = log_scores.gather(-1, tokens[..., None])[..., 0]
    own = log_scores.gather(-1, corrupted[..., None])[..., 0]
    assert float(own.detach().abs().max()) < 1e-12
    return ScoreSums(log_scores.exp().sum(-1) - 1, log_scores.sum(-1), log_true)


def masked_log_measure(windows: Tensor) -> Tensor:
    """log p(x_i | visible tokens) of windows (B, 3) with masks, (B, 3, V); -inf nowhere."""
    return MASKED_TABLE[toy.code(windows, VOCAB + 1)]


MASKED_TABLE = toy.masked_denoiser(MASKED_STATES).clamp(min=-700.0)


def gauss_legendre(num_points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for integrals over [0, 1], (n,) float64 (Golub and Welsch)."""
    k = torch.arange(1, num_points, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (nodes + 1) / 2, vectors[0] ** 2


def smooth_times(num_points: int) -> tuple[Tensor, Tensor]:
    """Times t = u^2 (3 - 2u) and weights: flat at the ends, where integrands are singular."""
    u, weight = gauss_legendre(num_points)
    return u**2 * (3 - 2 * u), weight * 6 * u * (1 - u)
