"""Tests that a model's config refuses wrong values, made from a list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nanozoo_core.config import model_config
from nanozoo_core.errors import ConfigError

Case = tuple[dict[str, Any], str]
"""Changes to a model's config, and the message as a pattern, behind `model_cfg.`"""

CONTROL_CASES: tuple[Case, ...] = (
    ({"num_heads": 5}, "num_heads=5 does not divide model_cfg.model_dim=128; use 1, 2, 4, 8"),
    ({"num_heads": 0}, "num_heads=0 must be at least 1"),
    ({"num_layers": 0}, "num_layers=0 must be at least 1"),
    ({"model_dim": 0}, "model_dim=0 must be at least 1"),
    ({"vocab_size": 1}, "vocab_size=1 must be at least 2 or null"),
    ({"seq_len": 0}, "seq_len=0 must be at least 1 or null"),
    ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be positive"),
)
"""Of models with the shape of the control."""


def refusal_test(model: str, *cases: Case) -> Callable[..., None]:
    """A test of each case, to be bound to a name that begins with `test_`."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        cases,
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def refuses(changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=f"model_cfg.{message}"):
            model_config(model, changes)

    return refuses


def assert_problems(model: str, changes: dict[str, Any], count: int) -> None:
    """Wrong values are reported at once: so many problems."""
    with pytest.raises(ConfigError) as caught:
        model_config(model, changes)
    assert len(caught.value.problems) == count
