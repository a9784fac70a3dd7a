"""The whole model against its equations: logits, loss and gradients, in float64."""

from __future__ import annotations

from typing import Any

import nsa_equations
from torch import Tensor

from nanozoo_core.testing.laws import equations_test
from nanozoo_nsa.config import NSAConfig

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


def _logits(config: NSAConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return nsa_equations.logits(weights, config, tokens)


test_the_model_is_its_equations = equations_test(
    "nsa", {name: SMALL | way for name, way in WAYS.items()}, _logits, length=24
)
