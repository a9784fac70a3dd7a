"""Corruption that moves tokens to similar ones: a graph over the vocabulary, fitted to the data.

B windows, L tokens, V data tokens, K states (data tokens and padding), T timesteps, C cluster size.

Reference: arXiv 2107.03006, appendix A.2.4 (nearest neighbours) and its text code (clusters).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.errors import ConfigError
from nanozoo_core.ops.categorical import draw_categorical
from nanozoo_d3pm import graph, schedules
from nanozoo_d3pm.transitions import (
    Transition,
    log_product,
    one_hot,
    per_window,
    require_small_prior,
)

SAMPLED_ROWS = 128  # rows of a large spectral process that stand for all in its entropy
SPECTRAL_GRID_POINTS = 64


class GraphTransition(Transition):
    """Jumps to similar tokens: Qb_t = expm(tau_t R), with R and tau fitted to the training data.

    Both are buffers, saved with the weights: another graph would be another model with another
    bound.
    """

    tau: Tensor
    prior: Tensor

    def __init__(
        self,
        vocab_size: int,
        num_states: int,
        num_timesteps: int,
        *,
        noise_schedule: str,
        uniform_rate: float,
        terminal_mask: bool,
    ) -> None:
        super().__init__(vocab_size, num_states, num_timesteps, terminal_mask=terminal_mask)
        self.noise_schedule = noise_schedule
        self.uniform_rate = uniform_rate
        self.register_buffer("tau", _unset(num_timesteps + 1))
        self.register_buffer("prior", _unset(vocab_size))  # KL per token of x_0

    @property
    def needs_data(self) -> bool:
        return True

    def prior_kl(self, tokens: Tensor) -> Tensor:
        return self.prior[tokens.to(self.prior.device)].cpu()

    def _tau_at(self, t: Tensor) -> Tensor:
        tau = self.tau[t.to(self.tau.device)]
        assert not bool(tau.isnan().any()), "the graph is not built: call adapter.prepare_model"
        return tau

    @abstractmethod
    def _diffuse(self, x: Tensor, tau: Tensor, dtype: torch.dtype) -> Tensor:
        """expm(tau R)[x, :], (B, L, K), for tau (B,); exactly one-hot at tau = 0."""

    def row(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self._diffuse(x, self._tau_at(t), dtype)

    def _column(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.row(x, t, dtype)[..., : self.vocab_size]

    def _step_column(self, x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self._diffuse(x, self._tau_at(t) - self._tau_at(s), dtype)

    def _choose_tau(
        self, information: Callable[[Tensor], Tensor], *, gap: float, grid_points: int
    ) -> Tensor:
        """tau_t (T + 1,): by information, or such that the share of tokens that have not jumped is
        about that of the named schedule. `gap` is the rate at which the last trace of x_0 fades."""
        end = 30 / max(gap, 1e-3)
        if self.noise_schedule == "mutual_info":
            grid = schedules.log_grid(1e-5, end, grid_points)
            tau = schedules.invert_information(information, grid, self.num_timesteps)
        else:
            cosine = self.noise_schedule == "cosine"
            table = schedules.cosine_log_keep if cosine else schedules.linear_log_keep
            tau = -table(self.num_timesteps)
        tau[-1] = tau[-2] if self.terminal_mask else min(float(tau[-1]), end)
        return tau

    def _set_prior(self, kl: Tensor) -> None:
        if self.terminal_mask:
            kl = torch.zeros_like(kl)
        require_small_prior(float(kl.max()))
        self.prior.copy_(kl.clamp(min=0).expand(self.vocab_size))


class Spectral(GraphTransition):
    """Jumps along the kNN graph: Qb_t = expm(tau_t R), by the eigenvectors of the symmetric R."""

    eigenvectors: Tensor
    eigenvalues: Tensor

    def __init__(
        self,
        vocab_size: int,
        num_timesteps: int,
        *,
        noise_schedule: str,
        num_neighbors: int,
        uniform_rate: float,
        terminal_mask: bool = True,
    ) -> None:
        super().__init__(
            vocab_size,
            vocab_size,
            num_timesteps,
            noise_schedule=noise_schedule,
            uniform_rate=uniform_rate,
            terminal_mask=terminal_mask,
        )
        self.num_neighbors = num_neighbors
        self.register_buffer("eigenvectors", _unset(vocab_size, vocab_size))
        self.register_buffer("eigenvalues", _unset(vocab_size))

    def fit(self, unigram: Tensor, vectors: Tensor | None) -> None:
        assert vectors is not None
        rates = graph.neighbor_rates(vectors, self.num_neighbors)
        rates += self.uniform_rate / self.vocab_size
        rates.diagonal().sub_(self.uniform_rate)
        values, basis = torch.linalg.eigh(rates)
        values = values.clamp(max=0)
        gap = float(-values[-2])
        if gap < 1e-9 and not self.terminal_mask:
            raise ConfigError(
                "the nearest-neighbour graph falls into separate components, which "
                "model_cfg.terminal_mask=false with model_cfg.nn_uniform_rate=0 never mixes; use "
                "terminal_mask=auto or a positive nn_uniform_rate"
            )
        # H(x_t | x_0) averages over tokens; for large V, over representative ones.
        chosen, shares = torch.arange(self.vocab_size), unigram
        if self.vocab_size > 4 * SAMPLED_ROWS:
            points = (torch.arange(SAMPLED_ROWS) + 0.5) / SAMPLED_ROWS
            chosen = torch.searchsorted(unigram.cumsum(0), points.double())
            shares = torch.full((SAMPLED_ROWS,), 1 / SAMPLED_ROWS, dtype=torch.float64)

        def information(grid: Tensor) -> Tensor:
            start = torch.cat([(unigram @ basis)[None], basis[chosen]])  # (1 + rows, V)
            gained = []
            for tau in grid:
                probs = (start * (tau * values).exp()) @ basis.T
                entropies = schedules.entropy(probs.clamp(min=0))
                gained.append(entropies[0] - shares @ entropies[1:])
            return torch.stack(gained) / schedules.entropy(unigram)

        tau = self._choose_tau(information, gap=gap, grid_points=SPECTRAL_GRID_POINTS)
        self.eigenvectors.copy_(basis)
        self.eigenvalues.copy_(values)
        self.tau.copy_(tau)
        kl = torch.zeros(1, dtype=torch.float64)
        if not self.terminal_mask:
            last = (basis * (tau[-1] * values).exp()) @ basis.T  # (V, V)
            kl = math.log(self.vocab_size) - schedules.entropy(last.clamp(min=0))
        self._set_prior(kl)

    def _diffuse(self, x: Tensor, tau: Tensor, dtype: torch.dtype) -> Tensor:
        basis, decay = self._spectrum(tau, x, dtype)
        probs = ((basis[x] * decay[:, None]) @ basis.T).clamp(min=0)  # (B, L, V)
        still = (tau == 0)[:, None, None].to(x.device)
        return torch.where(still, one_hot(x, self.vocab_size, dtype), probs)

    def _spectrum(self, tau: Tensor, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The basis (V, V) and what is left of each of its vectors, (B, V), beside `like`."""
        decay = (tau[:, None] * self.eigenvalues).exp()
        return self.eigenvectors.to(like.device, dtype), decay.to(like.device, dtype)

    def _corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor:
        return draw_categorical(self.row(tokens, t, torch.float32), uniforms)

    def log_mix(self, log_probs: Tensor, t: Tensor) -> Tensor:
        basis, decay = self._spectrum(self._tau_at(t), log_probs, log_probs.dtype)
        return log_product(log_probs, lambda p: ((p @ basis) * decay[:, None]) @ basis.T, t)


class Clusters(GraphTransition):
    """Jumps within a cluster of neighbours at rate 1, anywhere at rate r: O(V) at any size.

    expm(tau R) = e^{-tau (1+r)} I + (e^{-tau r} - e^{-tau (1+r)}) Pc + (1 - e^{-tau r}) Pg, with Pc
    and Pg averages over the cluster and over all K states. The vocabulary is padded with ids that
    are never predicted, so that all clusters have the same size.
    """

    order: Tensor

    def __init__(
        self,
        vocab_size: int,
        num_timesteps: int,
        *,
        noise_schedule: str,
        cluster_size: int,
        uniform_rate: float,
        terminal_mask: bool = True,
    ) -> None:
        num_states = -(-vocab_size // cluster_size) * cluster_size
        super().__init__(
            vocab_size,
            num_states,
            num_timesteps,
            noise_schedule=noise_schedule,
            uniform_rate=uniform_rate,
            terminal_mask=terminal_mask,
        )
        self.cluster_size = cluster_size
        self.register_buffer("order", torch.arange(num_states, device="cpu"))

    def fit(self, unigram: Tensor, vectors: Tensor | None) -> None:
        assert vectors is not None
        order = graph.cluster_order(vectors, self.cluster_size)
        order = torch.cat([order, torch.arange(self.vocab_size, self.num_states)])
        padded = F.pad(unigram, (0, self.num_states - self.vocab_size))[order]
        by_cluster = padded.view(-1, self.cluster_size)

        def information(grid: Tensor) -> Tensor:
            stay, near, anywhere = self._shares(grid)
            marginal = (
                stay[:, None] * padded
                + near[:, None] * by_cluster.mean(1).repeat_interleave(self.cluster_size)
                + anywhere[:, None] / self.num_states
            )
            gained = schedules.entropy(marginal) - self._row_entropy(grid)
            return gained / schedules.entropy(unigram)

        points = schedules.GRID_POINTS
        self.order.copy_(order)
        self.tau.copy_(self._choose_tau(information, gap=self.uniform_rate, grid_points=points))
        self._set_prior(math.log(self.num_states) - self._row_entropy(self.tau[-1:].cpu()))

    def _shares(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities of no jump, of jumps within the cluster only, and of any jump out of it."""
        stay = (-tau * (1 + self.uniform_rate)).exp()
        near = (-tau * self.uniform_rate).exp() * -torch.expm1(-tau)
        return stay, near, -torch.expm1(-tau * self.uniform_rate)

    def _row_entropy(self, tau: Tensor) -> Tensor:
        """Entropy of a row of expm(tau R), the same for all rows: (G,) for tau (G,)."""
        stay, near, anywhere = self._shares(tau)
        far = anywhere / self.num_states
        inside = near / self.cluster_size + far
        own = stay + inside
        num_far = self.num_states - self.cluster_size
        return -(
            torch.xlogy(own, own)
            + (self.cluster_size - 1) * torch.xlogy(inside, inside)
            + num_far * torch.xlogy(far, far)
        )

    def _places(self) -> Tensor:
        """Where each id stands in `order`, (K,)."""
        return torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(self.num_states, device=self.order.device)
        )

    def _corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor:
        stay, near, anywhere = (part.cpu()[:, None] for part in self._shares(self._tau_at(t)))
        inside = ((uniforms - stay) / near.clamp(min=1e-300) * self.cluster_size).long()
        outside = ((uniforms - stay - near) / anywhere.clamp(min=1e-300) * self.num_states).long()
        inside = inside.clamp(0, self.cluster_size - 1).to(tokens.device)
        outside = outside.clamp(0, self.num_states - 1).to(tokens.device)
        first = self._places()[tokens] // self.cluster_size * self.cluster_size
        moved = torch.where(
            (uniforms < stay + near).to(tokens.device), self.order[first + inside], outside
        )
        return torch.where((uniforms < stay).to(tokens.device), tokens, moved)

    def _diffuse(self, x: Tensor, tau: Tensor, dtype: torch.dtype) -> Tensor:
        stay, near, anywhere = (per_window(part, x, dtype) for part in self._shares(tau))
        cluster = self._places() // self.cluster_size
        same = (cluster[x][..., None] == cluster).to(dtype)  # (B, L, K)
        return (
            stay * one_hot(x, self.num_states, dtype)
            + near / self.cluster_size * same
            + anywhere / self.num_states
        )

    def log_mix(self, log_probs: Tensor, t: Tensor) -> Tensor:
        dtype = log_probs.dtype
        shares = self._shares(self._tau_at(t))
        stay, near, anywhere = (per_window(part, log_probs, dtype) for part in shares)
        padding = self.num_states - self.vocab_size
        log_probs = F.pad(log_probs, (0, padding), value=-math.inf)
        mass = log_probs[..., self.order].exp().unflatten(-1, (-1, self.cluster_size)).mean(-1)
        per_state = mass[..., self._places() // self.cluster_size]  # (B, L, K)
        moved = near * per_state + anywhere / self.num_states
        # Nothing has moved at t = 0, and a log of 0 has no gradient.
        return torch.where(
            near > 0,
            torch.logaddexp(stay.log() + log_probs, moved.clamp(min=1e-30).log()),
            log_probs,
        )


def _unset(*shape: int) -> Tensor:
    return torch.full(shape, math.nan, dtype=torch.float64, device="cpu")
