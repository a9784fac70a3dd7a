"""The start at the width of the released 130M models: every tensor's deviation, the first loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.contract import Draw
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.starts import Start, assert_starts
from nanozoo_mamba.adapter import MambaAdapter
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.model import Mamba

NUM_LAYERS, DIM, INNER = 2, 768, 1536
PUBLISHED: dict[str, Any] = {"vocab_size": 50257, "num_layers": NUM_LAYERS, "model_dim": DIM}
SECOND = {"variant": "mamba2", "d_state": 128, "head_dim": 64}
MIXER = "blocks.*.mixer."


def build(**settings: Any) -> Mamba:
    torch.manual_seed(0)
    return Mamba(model_config("mamba", PUBLISHED | settings))


def uniform(limit: float) -> float:
    """Deviation of U(-limit, limit)."""
    return limit / math.sqrt(3)


def moments(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


def step_bias() -> tuple[float, float]:
    """Of the inverse softplus of steps that are log-uniform between 0.001 and 0.1."""
    steps = torch.linspace(math.log(1e-3), math.log(1e-1), 100_001, dtype=torch.float64).exp()
    return moments(torch.expm1(steps).log())


def around_the_mixers(additions: int) -> dict[str, Start]:
    return {
        "embedding.weight": 0.02,
        "norm.weight": (1.0, 0.0),
        "blocks.*.norm.weight": (1.0, 0.0),
        MIXER + "in_proj.weight": uniform(DIM**-0.5),
        MIXER + "out_proj.weight": uniform(INNER**-0.5) / math.sqrt(additions),
        MIXER + "conv.weight": uniform(0.5),
        MIXER + "conv.bias": uniform(0.5),
        MIXER + "skip": (1.0, 0.0),
    }


def test_every_tensor_of_mamba1_starts_at_its_deviation() -> None:
    expected = around_the_mixers(2 * NUM_LAYERS) | {
        "head.weight": 0.02,
        "blocks.*.mlp_norm.weight": (1.0, 0.0),
        "blocks.*.mlp.gate_up.weight": uniform(DIM**-0.5),
        "blocks.*.mlp.down.weight": uniform(512**-0.5) / math.sqrt(2 * NUM_LAYERS),
        MIXER + "in_proj.bias": 0.0,
        MIXER + "out_proj.bias": 0.0,
        MIXER + "x_proj.weight": uniform(INNER**-0.5),
        MIXER + "dt_proj.weight": uniform(48**-0.5),
        MIXER + "dt_proj.bias": step_bias(),
        MIXER + "A_log": moments(torch.arange(1.0, 17.0).log().double().repeat(INNER)),
    }
    model = build(vocab_size=4096, mlp_dim=512, use_bias=True, tie_embeddings=False)
    assert_starts(model, expected)


def test_every_tensor_of_mamba2_starts_at_its_deviation() -> None:
    rates = torch.linspace(1, 16, 100_001, dtype=torch.float64)
    expected = around_the_mixers(NUM_LAYERS) | {
        MIXER + "norm.weight": (1.0, 0.0),
        MIXER + "dt_proj.weight": uniform(DIM**-0.5),
        MIXER + "dt_bias": step_bias(),
        MIXER + "A_log": moments(rates.log()),
    }
    assert_starts(build(vocab_size=4096, **SECOND), expected)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, SECOND], ids=["mamba1", "mamba2"])
def test_the_first_loss_is_that_of_logits_as_large_as_the_embedding(settings: Any) -> None:
    """Half the square of their deviation, 0.02 sqrt(768), above a uniform guess."""
    tokens = torch.randint(50257, (4, 65), generator=torch.Generator().manual_seed(0))
    nll = MambaAdapter(MambaConfig, Mamba).nll(build(**settings), batch_of(tokens), Draw(0))
    expected = math.log(50257) + 0.02**2 * DIM / 2
    assert float(nll.nats.sum()) / 256 == pytest.approx(expected, abs=0.1)
