"""The whole model against its equations: logits, loss and gradients, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import nsa_equations
import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.testing.laws import assert_is_its_equations, perturb
from nanozoo_core.testing.sources import batch_of
from nanozoo_nsa.adapter import NSAAdapter
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.model import NSA

# No two sizes are equal, so that nothing fits by accident.
SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "num_layers": 2,
    "model_dim": 24,
    "num_heads": 6,
    "num_kv_heads": 2,
    "mlp_ratio": 1.5,
    "sliding_window_size": 5,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 4,
    "rope_theta": 100.0,
}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "shared-kv": {"shared_kv": True, "cmp_rope": "none", "compress_residual_mean": False},
    "turned-before": {"cmp_rope": "post", "compress_mode": "linear", "qk_norm": False},
    "free-blocks": {"init_blocks": 0, "local_blocks": 1, "nsa_impl": "dense_mask"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_model_is_its_equations(way: dict[str, Any]) -> None:
    config = model_config("nsa", SMALL | way)
    torch.manual_seed(0)
    model = NSA(config).double()
    perturb(model, 0.3)
    tokens = torch.randint(11, (2, 25), generator=torch.Generator().manual_seed(1))
    equations = partial(_logits, config=config)
    assert_is_its_equations(NSAAdapter(NSAConfig, NSA), model, batch_of(tokens), equations)


def _logits(
    weights: dict[str, torch.Tensor], tokens: torch.Tensor, config: NSAConfig
) -> torch.Tensor:
    return nsa_equations.logits(weights, config, tokens)
