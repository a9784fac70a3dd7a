"""The whole model against its equations, position by position, from weights by name: logits, loss
and gradients, in float64.

Reference: arXiv 2312.00752, algorithm 2; arXiv 2405.21060, section 7.1. T sequence, D model_dim,
E inner width, N states, K taps of the convolution, H heads of E / H channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.testing.laws import equations_test
from nanozoo_mamba.config import MambaConfig

Weights = dict[str, Tensor]

SMALL: dict[str, Any] = {"vocab_size": 11, "seq_len": 21, "num_layers": 2}
WAYS: dict[str, dict[str, Any]] = {
    "mamba1": {"model_dim": 10, "d_state": 4, "time_step_rank": 3, "d_conv": 3},
    "mamba1-all-options": {
        "model_dim": 10, "d_state": 4, "time_step_rank": 3, "mlp_dim": 7, "use_bias": True,
        "tie_embeddings": False, "expand": 3,
    },
    "mamba2": {"variant": "mamba2", "model_dim": 12, "d_state": 5, "head_dim": 6,
               "chunk_size": 16, "d_conv": 3},
    "mamba2-groups": {
        "variant": "mamba2", "model_dim": 12, "d_state": 5, "head_dim": 6, "chunk_size": 16,
        "num_groups": 2, "use_bias": True, "use_conv_bias": False,
    },
}  # fmt: skip


def logits(config: MambaConfig, weights: Weights, tokens: Tensor) -> Tensor:
    """(T, V)."""
    mix = mamba1 if config.variant == "mamba1" else mamba2
    h = torch.stack([weights["embedding.weight"][token] for token in tokens.tolist()])
    for layer in range(config.shape.num_layers):
        start = f"blocks.{layer}."
        own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
        mixer = {n.removeprefix("mixer."): w for n, w in own.items() if n.startswith("mixer.")}
        h = h + mix(config, mixer, norm(config, h, own["norm.weight"]))
        if config.mlp_dim:
            gate_up = norm(config, h, own["mlp_norm.weight"]) @ own["mlp.gate_up.weight"].T
            gate, up = gate_up[:, : config.mlp_dim], gate_up[:, config.mlp_dim :]
            h = h + (silu(gate) * up) @ own["mlp.down.weight"].T
    head = weights["embedding.weight" if config.tie_embeddings else "head.weight"]
    return norm(config, h, weights["norm.weight"]) @ head.T


def mamba1(config: MambaConfig, weights: Weights, u: Tensor) -> Tensor:
    """(T, D) -> (T, D), one channel's state (N,) for each of E channels."""
    inner, states = config.inner_dim, config.states
    rank = config.steps.rank
    rates = -torch.exp(weights["A_log"])  # (E, N)
    inputs = project(weights, "in_proj", u)
    x, z = convolve(weights, inputs[:, :inner]), inputs[:, inner:]
    state = torch.zeros(inner, states, dtype=u.dtype)
    rows = []
    for t in range(len(u)):
        choice = weights["x_proj.weight"] @ x[t]
        b, c = choice[rank : rank + states], choice[rank + states :]
        step = weights["dt_proj.weight"] @ choice[:rank] + weights["dt_proj.bias"]
        delta = torch.log1p(torch.exp(step))[:, None]  # (E, 1)
        state = torch.exp(delta * rates) * state + delta * b * x[t][:, None]
        y = (state * c).sum(1) + weights["skip"] * x[t]
        rows.append(y * silu(z[t]))
    return project(weights, "out_proj", torch.stack(rows))


def mamba2(config: MambaConfig, weights: Weights, u: Tensor) -> Tensor:
    """(T, D) -> (T, D), one decay for each head, whose channels share b and c with their group."""
    inner, states = config.inner_dim, config.states
    width, groups = config.heads.head_dim, config.heads.num_groups
    num_heads = inner // width
    inputs, steps = project(weights, "in_proj", u), project(weights, "dt_proj", u)
    z, convolved = inputs[:, :inner], convolve(weights, inputs[:, inner:])
    columns = []
    for head in range(num_heads):
        group = head // (num_heads // groups)
        x = convolved[:, head * width : (head + 1) * width]
        b = convolved[:, inner + group * states :][:, :states]
        c = convolved[:, inner + (groups + group) * states :][:, :states]
        state = torch.zeros(width, states, dtype=u.dtype)
        rows = []
        for t in range(len(u)):
            delta = torch.log1p(torch.exp(steps[t, head] + weights["dt_bias"][head]))
            decay = torch.exp(-torch.exp(weights["A_log"][head]) * delta)
            state = decay * state + delta * torch.outer(x[t], b[t])
            rows.append(state @ c[t] + weights["skip"][head] * x[t])
        columns.append(torch.stack(rows))
    gated = torch.cat(columns, dim=1) * silu(z)
    gains = weights["norm.weight"].split(inner // groups)
    parts = zip(gated.split(inner // groups, dim=1), gains, strict=True)
    return project(weights, "out_proj", torch.cat([norm(config, y, g) for y, g in parts], dim=1))


def project(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def convolve(weights: Weights, inputs: Tensor) -> Tensor:
    """silu of a causal convolution of each channel of (T, E), the last tap on the position."""
    kernel = weights["conv.weight"][:, 0]  # (E, K)
    taps = kernel.shape[1]
    rows = []
    for t in range(len(inputs)):
        terms = [kernel[:, taps - 1 - back] * inputs[t - back] for back in range(min(taps, t + 1))]
        total = torch.stack(terms).sum(0)
        rows.append(silu(total + weights["conv.bias"] if "conv.bias" in weights else total))
    return torch.stack(rows)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def norm(config: MambaConfig, x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()


test_the_model_is_its_equations = equations_test(
    "mamba", {name: SMALL | way for name, way in WAYS.items()}, logits, length=21
)
