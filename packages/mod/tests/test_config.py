from __future__ import annotations

import warnings
from typing import Any

import pytest

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 does not divide model_cfg.model_dim=128; use 1, 2, 4, 8"),
        ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1"),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"num_layers": 1}, "every_other=true routes block 1, which model_cfg.num_layers=1 lacks"),
        ({"model_dim": 0}, "model_dim=0 must be at least 1"),
        ({"vocab_size": 1}, "vocab_size=1 must be at least 2 or null"),
        ({"seq_len": 0}, "seq_len=0 must be at least 1 or null"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be positive"),
        ({"capacity": 0.0}, r"capacity=0.0 must be in \(0, 1\]"),
        ({"capacity": 1.5}, r"capacity=1.5 must be in \(0, 1\]"),
        ({"router_gate": "one"}, "router_gate=one leaves a learned router without gradient"),
        (
            {"causal_router": "router", "predictor_threshold": "calibrated"},
            "predictor_threshold=calibrated needs a predictor",
        ),
        ({"predictor_dim": 0}, "predictor_dim=0 must be at least 1"),
        ({"predictor_coef": -1.0}, "predictor_coef=-1.0 must not be negative"),
        ({"router_aux_coef": -1.0}, "router_aux_coef=-1.0 must not be negative"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"model_cfg.{message}"):
        model_config("mod", changes)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        model_config("mod", {"num_heads": 5, "capacity": 2.0, "seq_len": 0})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"router_aux_coef": 0.1}, "causal_router=predictor"),
        ({"causal_router": "router", "predictor_dim": 8}, "causal_router=router"),
        ({"router_type": "random", "predictor_dim": 8}, "router_type=random"),
        ({"capacity": 1.0, "predictor_threshold": "calibrated"}, "capacity=1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_without_effect_is_pointed_out(changes: dict[str, Any], cause: str) -> None:
    key, value = list(changes.items())[-1]
    message = f"model_cfg.{key}={value} has no effect with model_cfg.{cause}"
    with pytest.warns(UserWarning, match=message):
        model_config("mod", changes)


def test_the_default_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_config("mod")


@pytest.mark.parametrize(
    ("capacity", "length", "expected"),
    [(0.125, 1024, 128), (0.125, 1, 1), (0.125, 7, 1), (0.125, 9, 2), (0.7, 10, 7), (1.0, 5, 5)],
)
def test_capacity_rounds_up_and_leaves_one(capacity: float, length: int, expected: int) -> None:
    assert model_config("mod", {"capacity": capacity}).num_selected(length) == expected


def test_which_blocks_are_routed() -> None:
    assert list(model_config("mod", {"num_layers": 5}).routed_layers) == [1, 3]
    assert list(model_config("mod", {"num_layers": 3, "every_other": False}).routed_layers) == [
        0,
        1,
        2,
    ]


def test_the_ablation_runs_by_a_setting() -> None:
    overrides = ["model=mod", "model_cfg.router_type=random"]
    config = training_config(compose_config(overrides))
    assert config.model_cfg["router_type"] == "random"
