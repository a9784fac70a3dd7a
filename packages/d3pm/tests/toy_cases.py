"""The enumerable source of three symbols under every process, with the exact predictions."""

from __future__ import annotations

import math

import torch
from process_cases import cumulative
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.testing import toy
from nanozoo_d3pm.graph import unit_rows
from nanozoo_d3pm.graph_transitions import Clusters, Spectral
from nanozoo_d3pm.losses import general_kl
from nanozoo_d3pm.model import D3PM
from nanozoo_d3pm.transitions import Absorbing, Gaussian, Transition, Uniform

FAMILIES = ("absorbing", "uniform", "gaussian", "spectral", "clusters")
VECTORS = torch.tensor([[1.0, 0.1], [0.9, -0.2], [-0.3, 1.0]], dtype=torch.float64)


def toy_process(family: str, num_timesteps: int) -> Transition:
    """The last three end in a mask; the clusters of two need a fourth id, which pads."""
    if family == "absorbing":
        return Absorbing(3, num_timesteps, "linear")
    if family == "uniform":
        return Uniform(3, num_timesteps, "linear")
    if family == "gaussian":
        # With three ids a jump has probability exp(-1 / beta): here from 0.1 / T to 6 / T.
        low, high = (1 / math.log((num_timesteps + 6) / jumps) for jumps in (0.1, 6))
        scale = num_timesteps / 1000
        betas = {"beta_min": low * scale, "beta_max": high * scale}
        return Gaussian(3, num_timesteps, **betas, dtype=torch.float64)
    process: Transition
    settings = {"noise_schedule": "mutual_info", "uniform_rate": 0.3}
    if family == "spectral":
        process = Spectral(3, num_timesteps, num_neighbors=1, **settings)
    else:
        process = Clusters(3, num_timesteps, cluster_size=2, **settings)
    symbols = nn.functional.one_hot(toy.sequences(), 3).double()
    process.fit(torch.einsum("n,nlv->v", toy.joint(), symbols) / 3, unit_rows(VECTORS))
    return process


def toy_prediction(process: Transition, states: Tensor, t: int) -> Tensor:
    """log p(x_0 at i | the other tokens of x_t) for every row of `states` (N, 3): (N, 3, V)."""
    x = toy.sequences()
    columns = process.column(states, torch.tensor([t]), torch.float64)  # (N, 3, V)
    chance = columns[:, torch.arange(3), x]  # (N, 27, 3): q(x_t | x_0) token by token
    others = torch.stack([chance[:, :, [i != j for j in range(3)]].prod(-1) for i in range(3)])
    mass = torch.einsum("k,ink,kiv->niv", toy.joint(), others, nn.functional.one_hot(x, 3).double())
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total, 1 / 3).log()  # what cannot happen needs no care


def toy_states(process: Transition, t: int) -> Tensor:
    """Every x_t that can be, (N, 3)."""
    if process.terminal_mask and t == process.num_timesteps:
        return torch.full((1, 3), process.num_states)
    return torch.cartesian_prod(*[torch.arange(process.num_states)] * 3)


def toy_bound(process: Transition) -> float:
    """The bound with exact predictions, summed over all t, x_0 and x_t: nats per sequence."""
    x = toy.sequences()
    total = float(toy.joint() @ process.prior_kl(x).sum(1))
    for t in range(1, process.num_timesteps + 1):
        states = toy_states(process, t)
        count = len(states)
        log_probs = toy_prediction(process, states, t)
        if process.terminal_mask and t == process.num_timesteps:
            chance = torch.ones(27, 1, dtype=torch.float64)
        else:
            matrix = cumulative(process, t)
            chance = matrix[x[:, None, :], states[None]].prod(-1)  # (27, N)
        shape = (27, count, 3)
        kl = general_kl(
            process,
            log_probs[None].expand(*shape, 3).reshape(1, -1, 3),
            x[:, None].expand(shape).reshape(1, -1),
            states[None].expand(shape).reshape(1, -1),
            torch.tensor([t]),
        )
        kl = torch.where(chance > 0, kl.view(shape).sum(-1), 0)
        total += float((toy.joint()[:, None] * chance * kl).sum())
    return total


def toy_model(process: Transition) -> D3PM:
    """A D3PM whose network knows the source; the context token before a sequence says nothing."""
    changes = {"vocab_size": 3, "seq_len": 3, "model_dim": 4, "num_heads": 1, "sar_chunk_size": 2}
    steps = {"num_timesteps": process.num_timesteps, "sampling_timesteps": process.num_timesteps}
    config = model_config("d3pm", changes | steps | {"time_conditioning": True})
    model = D3PM(config)
    model.transition = process

    def table(windows: Tensor, time: Tensor) -> Tensor:
        steps = (time.double() * process.num_timesteps / 1000).round().long()
        result = torch.empty(*windows.shape, 3, dtype=torch.float64)
        for t in steps.unique().tolist():
            result[steps == t] = toy_prediction(process, windows[steps == t], t)
        return result

    model.net = toy.TableNetwork(table)  # type: ignore[assignment]
    return model
