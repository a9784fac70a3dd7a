"""What a model is counted by on a ladder: weights of the body, weights that multiply a token, and
FLOPs for each token.

`params_non_embedding` of a result counts an untied head and no tied one, so that it makes no
ladder. At small sizes the head and its FLOPs dominate, and a law without them has other exponents
(Pearce & Song 2024, arXiv 2406.12907; Porian et al. 2024, arXiv 2406.19146).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nanozoo_core.comparing.compare.width import weightless
from nanozoo_core.config import ResolvedConfig
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.optim.orthogonalize import COEFFICIENTS

BODY_ROLES = ("matrix", "vector")


@dataclass(frozen=True)
class Counts:
    """Of one model at one size."""

    body: int
    """Parameters outside the head and the tables that a token reads a row of."""
    n: float
    """Weights that multiply a token, the head's among them: a sixth of the FLOPs without attention.
    Experts that a token does not meet are not in it, and a layer that it meets twice counts so."""
    total: int
    """All parameters."""
    flops_per_token: float
    """Of training, the head and the full square of attention included, the optimiser not."""
    head_share: float
    """Of the head in those FLOPs."""
    muon: float
    """FLOPs of Muon in each step, which are in no other count; 0 without Muon."""


def body_of(adapter: DefaultModelAdapter, model: nn.Module) -> int:
    roles = adapter.parameter_roles(model)
    return sum(p.numel() for name, p in model.named_parameters() if roles[name] in BODY_ROLES)


def body(config: ResolvedConfig, changes: dict[str, object]) -> float:
    """The weights of the body with changed settings. Raises: ConfigError as `weightless`."""
    adapter, _, model = weightless(config, changes)
    return float(body_of(adapter, model))


def flops(config: ResolvedConfig, changes: dict[str, object]) -> float:
    """FLOPs for each token with changed settings. Raises: ConfigError as `weightless`."""
    adapter, model_cfg, _ = weightless(config, changes)
    return adapter.flops_per_token(model_cfg, config.training.data.seq_len)


def count_at(config: ResolvedConfig) -> Counts:
    """Raises: ConfigError as `weightless`."""
    adapter, model_cfg, model = weightless(config, {})
    seq_len = config.training.data.seq_len
    per_token = adapter.flops_per_token(model_cfg, seq_len)
    return Counts(
        body=body_of(adapter, model),
        n=_without_attention(adapter, model_cfg, seq_len) / 6,
        total=sum(p.numel() for p in model.parameters()),
        flops_per_token=per_token,
        head_share=6 * _head(model) / per_token,
        muon=_muon(config, adapter, model),
    )


def muon_flops(shape: Sequence[int], iterations: int) -> float:
    """Of orthogonalising a matrix, or a stack of them, once: 4 m^2 n + 2 m^3 for each iteration,
    with m the shorter side.

    Args: shape: (..., rows, columns).
    """
    *stack, rows, columns = shape
    m, n = sorted((rows, columns))
    return math.prod(stack) * iterations * (4.0 * m**2 * n + 2.0 * m**3)


def _muon(config: ResolvedConfig, adapter: DefaultModelAdapter, model: nn.Module) -> float:
    optim, roles = config.training.optim, adapter.parameter_roles(model)
    if optim.name != "muon":
        return 0.0
    iterations = len(COEFFICIENTS[optim.muon.orth])
    return sum(
        muon_flops(p.shape, iterations)
        for name, p in model.named_parameters()
        if roles[name] == "matrix" and p.ndim > 1
    )


def _without_attention(adapter: DefaultModelAdapter, model_cfg: Any, seq_len: int) -> float:
    """FLOPs for a token that has nothing to look back on: attention grows with the window, and two
    windows tell how much is left without."""
    short, long = (adapter.flops_per_token(model_cfg, n) for n in (seq_len // 2, seq_len))
    return 2 * short - long


def _head(model: nn.Module) -> int:
    weight = getattr(model, "output_weight", None)
    return 0 if weight is None else int(weight.numel())
