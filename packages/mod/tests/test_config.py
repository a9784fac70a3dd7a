from __future__ import annotations

import warnings
from typing import Any

import pytest

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test

test_a_wrong_value_is_refused = refusal_test(
    "mod",
    *CONTROL_CASES,
    ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1"),
    ({"num_layers": 1}, "every_other=true routes block 1, which model_cfg.num_layers=1 lacks"),
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
)


def test_all_problems_come_at_once() -> None:
    assert_problems("mod", {"num_heads": 5, "capacity": 2.0, "seq_len": 0}, 3)


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
def test_a_setting_without_effect_is_refused(changes: dict[str, Any], cause: str) -> None:
    key, value = list(changes.items())[-1]
    message = f"model_cfg.{key}={value} has no effect with model_cfg.{cause}"
    with pytest.raises(ConfigError, match=message):
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
