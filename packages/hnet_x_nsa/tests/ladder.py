"""A ladder of two levels, small enough for the tests."""

from __future__ import annotations

from typing import Any

LADDER: dict[str, Any] = {
    "num_inner_layers": 1,
    "num_ladder_levels": 2,
    "ladder_size": 4,
    "model_dim": 32,
    "mlp_dim": 48,
    "num_heads": 2,
    "rotary_emb_dim": 8,
    "window_size": 15,
}
