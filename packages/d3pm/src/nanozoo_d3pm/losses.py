"""The terms of the variational bound, per token and in nats.

B windows, L tokens, V data tokens, K states.

All of them are functions of log p (B, L, V), the network's prediction of x_0 from the *other*
tokens of x_t. The posterior given all of them is something else, proportional to
p_k Qb_t[k, x_t]. Mixing the two up still trains, to a worse optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nanozoo_core.machine.precision import finest_dtype
from nanozoo_d3pm.transitions import Transition, Uniform


def general_kl(
    transition: Transition, log_probs: Tensor, x0: Tensor, xt: Tensor, t: Tensor
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for any process, (B, L).

    sum_j q_j (log Qb_{t-1}[k, j] - log m_j) + log sum_j Q_t[j, i] m_j - log Qb_t[k, i], with
    k = x_0, i = x_t, m = p Qb_{t-1}; at t = 1 it is -log p(x_0 | x_1).

    Reference: arXiv 2107.03006, eq. 1 and 4.
    """
    column = transition.step_column(xt, t - 1, t, log_probs.dtype)  # (B, L, K)
    row = transition.row(x0, t - 1, log_probs.dtype)
    log_m = transition.log_mix(log_probs, t - 1)
    joint = column * row
    evidence = joint.sum(-1)  # Qb_t[k, i]
    posterior = joint / evidence[..., None]
    possible = posterior > 0
    difference = row.log().masked_fill(~possible, 0) - log_m.masked_fill(~possible, 0)
    log_normaliser = (column.log() + log_m).logsumexp(-1)
    return (posterior * difference).sum(-1) + log_normaliser - evidence.log()


def posterior_cross_entropy(
    transition: Transition, log_probs: Tensor, x0: Tensor, xt: Tensor, t: Tensor
) -> Tensor:
    """-log of the model's posterior of x_0 given all of x_t, (B, L)."""
    column = transition.column(xt, t, log_probs.dtype)  # (B, L, V)
    joint = log_probs + column.log()
    return joint.logsumexp(-1) - joint.gather(-1, x0[..., None])[..., 0]


@dataclass(frozen=True)
class UniformRates:
    """What the bound of the uniform process needs of the schedule at t, each float64 (B, 1)."""

    log_keep: Tensor  # log of Qb_t's kept share
    log_keep_before: Tensor  # that of Qb_{t-1}
    vocab_size: int

    @classmethod
    def at(cls, transition: Uniform, t: Tensor) -> UniformRates:
        return cls(
            transition.log_keep_at(t)[:, None],
            transition.log_keep_at(t - 1)[:, None],
            transition.vocab_size,
        )

    @property
    def ratio(self) -> Tensor:
        """keep_{t-1} / c, with c = (1 - keep_{t-1}) / V the floor of m; 0 at t = 1, where c is 0
        and the sum it enters has no weight."""
        floor = -torch.expm1(self.log_keep_before) / self.vocab_size
        return torch.where(floor > 0, self.log_keep_before.exp() / floor.clamp(min=1e-300), 0)


def uniform_kl_and_cross_entropy(
    rates: UniformRates,
    log_p_own: Tensor,
    log_p_true: Tensor,
    sum_log1p: Tensor,
    same: Tensor,
) -> tuple[Tensor, Tensor]:
    """`general_kl` and `posterior_cross_entropy` of the uniform process with one sum over V.

    Args: each (B, L): log p at x_t; log p at x_0; sum_j log(1 + ratio p_j), which is
        sum_j log m_j - V log c; whether x_t = x_0.
    """
    # Terms nearly cancel and are then multiplied by T, so they are float64 where that exists.
    device = log_p_own.device
    dtype = finest_dtype(device)

    def put(values: Tensor) -> Tensor:
        return values.to(device, dtype)

    size = rates.vocab_size
    log_keep, log_before = rates.log_keep, rates.log_keep_before
    log_stay = log_keep - log_before  # log(1 - beta_t)
    beta = -torch.expm1(log_stay)
    floor = -torch.expm1(log_before) / size  # c
    jump = beta / size  # b
    log_floor = floor.log()
    own, true = put(log_p_own), put(log_p_true)
    log_m_own = torch.logaddexp(put(log_before) + own, put(log_floor))
    log_m_true = torch.logaddexp(put(log_before) + true, put(log_floor))
    log_normaliser = torch.logaddexp(put(jump.log()), put(log_stay) + log_m_own)
    # Given x_0 the same sums hold with a point mass in place of p: Qb_{t-1}[k, .] and Qb_t[k, i].
    before_same, before_other = log_before.exp() + floor, floor
    evidence = torch.where(
        same, put(log_keep.exp() - torch.expm1(log_keep) / size), put(-torch.expm1(log_keep) / size)
    )
    base = put(jump * floor) / evidence  # w_0
    # floor is 0 at t = 1: whatever stands for its logarithm then has no weight.
    log_floor = put(torch.where(floor > 0, log_floor, 0))
    log_before_own = torch.where(same, put(before_same.log()), log_floor)
    share_own = put(log_stay.exp() + jump) * torch.where(same, put(before_same), put(before_other))
    kl = -base * put(sum_log1p)
    kl = kl + share_own / evidence * (log_before_own - log_m_own) - base * (log_floor - log_m_own)
    share_true = put(jump * before_same) / evidence
    moved = share_true * (put(before_same.log()) - log_m_true) - base * (log_floor - log_m_true)
    kl = kl + torch.where(same, 0, moved) + log_normaliser - evidence.log()
    log_evidence = torch.logaddexp(put(log_keep) + own, put((-torch.expm1(log_keep) / size).log()))
    cross_entropy = log_evidence - true - evidence.log()
    return kl, cross_entropy


def hybrid_loss(bound: Tensor, cross_entropy: Tensor, factor: float) -> Tensor:
    """(bound + factor * cross_entropy) / (1 + factor): the paper's eq. 5, scaled to the size of a
    mean loss per token whatever T is.

    The reference code weighs the cross-entropy by lambda against the KL of a single step, which is
    factor = lambda T here; eq. 5 read literally has lambda against their sum.
    """
    return (bound + factor * cross_entropy) / (1 + factor)
