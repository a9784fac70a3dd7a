"""Small processes of every family, and their explicit matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.randomness import seeded_generator
from nanozoo_d3pm.graph import unit_rows
from nanozoo_d3pm.graph_transitions import Clusters, Spectral
from nanozoo_d3pm.transitions import Absorbing, Band, Gaussian, Transition, Uniform

VOCAB_SIZE = 12
NAMES = [
    "uniform-cosine",
    "uniform-linear",
    "uniform-mutual_info",
    "absorbing-linear",
    "absorbing-cosine",
    "gaussian",
    "gaussian-mask",
    "band-cosine",
    "band-mask",
    "spectral",
    "spectral-mask",
    "clusters",
    "clusters-mask",
]


def unigram(size: int = VOCAB_SIZE) -> Tensor:
    weights = torch.rand(size, generator=seeded_generator(1), dtype=torch.float64) + 0.05
    return weights / weights.sum()


def make(name: str, num_timesteps: int = 20, size: int = VOCAB_SIZE) -> Transition:
    """A fitted process; its matrices are float64 throughout."""
    family, _, rest = name.partition("-")
    process: Transition
    if family == "uniform":
        process = Uniform(size, num_timesteps, rest)
    elif family == "absorbing":
        process = Absorbing(size, num_timesteps, rest)
    elif family == "gaussian":
        process = Gaussian(
            size,
            num_timesteps,
            beta_min=1e-4,
            beta_max=0.02,
            terminal_mask=rest == "mask",
            dtype=torch.float64,
        )
    elif family == "band":
        process = Band(
            size,
            num_timesteps,
            width=9,
            noise_schedule="cosine" if rest == "cosine" else "linear",
            terminal_mask=rest == "mask",
            dtype=torch.float64,
        )
    else:
        options = {
            "noise_schedule": "mutual_info",
            "uniform_rate": 0.05,
            "terminal_mask": rest == "mask",
        }
        if family == "spectral":
            process = Spectral(size, num_timesteps, num_neighbors=3, **options)
        else:
            process = Clusters(size, num_timesteps, cluster_size=4, **options)
    vectors = torch.randn(size, 5, generator=seeded_generator(2), dtype=torch.float64)
    process.fit(unigram(size), unit_rows(vectors))
    return process


def last_time(process: Transition) -> int:
    """The last t at which the family itself, not the terminal mask, decides."""
    return process.num_timesteps - process.terminal_mask


def states(process: Transition) -> Tensor:
    return torch.arange(process.num_states)[None]


def cumulative(process: Transition, t: int) -> Tensor:
    """Qb_t (K, K)."""
    return process.row(states(process), torch.tensor([t]), torch.float64)[0]


def between(process: Transition, s: int, t: int) -> Tensor:
    """Q_{s+1} ... Q_t (K, K)."""
    columns = process.step_column(
        states(process), torch.tensor([s]), torch.tensor([t]), torch.float64
    )
    return columns[0].T


def random_log_probs(*shape: int, seed: int = 3) -> Tensor:
    logits = torch.randn(*shape, generator=seeded_generator(seed), dtype=torch.float64)
    return logits.log_softmax(-1)
