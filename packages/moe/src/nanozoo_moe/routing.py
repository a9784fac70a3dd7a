"""The router: which experts a token uses, at what weight, and what keeps their loads even.

B batch, T sequence, D model_dim, E experts, k experts per token, L layers of experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import widened
from nanozoo_core.nn.control import init_input_matrix
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.experts import count_tokens


class Routing(NamedTuple):
    """What a router decided for some tokens, in float32."""

    logits: Tensor  # (B, T, E)
    scores: Tensor  # (B, T, E): sigmoid or softmax of the logits
    experts: Tensor  # (B, T, k) int64: the chosen
    weights: Tensor  # (B, T, k): of their outputs
    counts: Tensor  # (E,) int64: tokens of each expert


class Router(nn.Module):
    """s = score(W h); the k experts with the largest s + b, weighted by s alone.

    `choice_bias` b moves by `update_bias` and by no gradient; `loads` counts the tokens of each
    expert in the step so far. Reference: arXiv 2408.15664, algorithm 1; 2412.19437, eq. 12 to 16.
    """

    choice_bias: Tensor | None
    loads: Tensor

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.num_experts, self.top_k = config.routed
        self.score_func = config.score_func
        self.normalize = config.norm_topk_prob
        self.scale = config.routed_scale
        self.jitter_noise = config.jitter_noise
        self.weight = nn.Parameter(torch.empty(self.num_experts, config.model_dim))
        balanced = config.balance == "bias"
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if balanced else None
        loads = torch.zeros(self.num_experts, dtype=torch.int64)
        self.register_buffer("choice_bias", bias)
        self.register_buffer("loads", loads, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """U(+-sqrt(3) * 0.5 / sqrt(D)): logits of standard deviation 0.5 on a normalised stream."""
        init_input_matrix(self.weight)

    def forward(self, h: Tensor, generators: Sequence[torch.Generator] | None = None) -> Routing:
        """Routes h (B, T, D); with one generator per row of the batch its input is jittered."""
        with torch.autocast(h.device.type, enabled=False):
            h = widened(h)
            if generators is not None:
                h = h * self._jitter(h, generators)
            logits = F.linear(h, self.weight.to(h.dtype))
            if self.score_func == "sigmoid":
                scores = logits.sigmoid()
            else:
                scores = logits.softmax(-1)
            ranked = scores.detach()
            if self.choice_bias is not None:
                ranked = ranked + self.choice_bias
            experts = ranked.topk(self.top_k, dim=-1).indices
            weights = scores.gather(-1, experts)
            if self.normalize:
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            weights = weights * self.scale
        return Routing(logits, scores, experts, weights, count_tokens(experts, self.num_experts))

    def _jitter(self, h: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        noise = torch.stack([torch.rand(h.shape[1:], generator=g) for g in generators])
        return 1 + self.jitter_noise * (2 * noise.to(h) - 1)

    @torch.no_grad()
    def update_bias(self, counts: Tensor, rate: float) -> None:
        """b += rate * (e - mean(e)), e = sign(mean(counts) - counts).

        Without the recentring, which changes no choice, b would drift as a whole.
        """
        assert self.choice_bias is not None
        error = (counts.sum() - self.num_experts * counts).sign().to(self.choice_bias.dtype)
        self.choice_bias += rate * (error - error.mean())


def balance_loss(routing: Routing, counts: Tensor | None = None) -> Tensor:
    """E sum_i f_i P_i: f_i the share of choices that fall on expert i, without gradient, P_i its
    mean score, scores divided by their sum. 1 where either is uniform, E at worst (k = 1).

    Args: counts: (E,) tokens of each expert in the global batch, of which this is a part; None
        where it is the whole.

    Reference: arXiv 2101.03961, eq. 4 to 6, with f summing to 1 for any k.
    """
    counts = routing.counts if counts is None else counts
    shares = counts / counts.sum()
    return len(shares) * (shares * _shares_of_score(routing).mean((0, 1))).sum()


def sequence_loss(routing: Routing) -> Tensor:
    """The same within each sequence, where f counts the k largest scores as if b were 0; the mean
    over sequences. Reference: arXiv 2412.19437, eq. 17 to 20."""
    num_experts, k = routing.scores.shape[-1], routing.experts.shape[-1]
    chosen = routing.scores.detach().topk(k, dim=-1).indices.flatten(1)  # (B, T k)
    counts = torch.zeros_like(routing.scores[:, 0])  # (B, E)
    counts = counts.scatter_add(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
    shares = counts / chosen.shape[1]
    return num_experts * (shares * _shares_of_score(routing).mean(1)).sum(-1).mean()


def z_loss(routing: Routing) -> Tensor:
    """mean_t logsumexp(z_t)^2, which keeps the logits small (arXiv 2202.08906, eq. 5)."""
    return routing.logits.logsumexp(-1).square().mean()


@torch.no_grad()
def load_metrics(counts: Tensor) -> dict[str, Tensor]:
    """How even the loads of one layer are, from the tokens of each expert (E,).

    max_vio: the largest load over the mean, less 1 (arXiv 2408.15664, eq. 4). min_load: the
    smallest over the mean. dead_experts: those without a token.
    """
    loads = counts / counts.sum() * len(counts)
    return {
        "max_vio": loads.max() - 1,
        "min_load": loads.min(),
        "dead_experts": (counts == 0).sum(),
    }


@torch.no_grad()
def score_metrics(routing: Routing) -> dict[str, Tensor]:
    """How sure a router is. router_entropy: of a token's scores divided by their sum, nats.
    max_score: a token's largest. Both are means over tokens."""
    probs = _shares_of_score(routing)
    return {
        "router_entropy": torch.special.entr(probs).sum(-1).mean(),
        "max_score": routing.scores.amax(-1).mean(),
    }


def _shares_of_score(routing: Routing) -> Tensor:
    """(B, T, E): scores that sum to 1, as sigmoids do not of themselves."""
    return routing.scores / routing.scores.sum(-1, keepdim=True)
