from __future__ import annotations

import warnings
from typing import Any

import pytest

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test

test_a_wrong_value_is_refused = refusal_test(
    "mtm",
    *CONTROL_CASES,
    ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1"),
    ({"num_mtp_modules": -1}, "num_mtp_modules=-1 must be between 0 and 4"),
    ({"num_mtp_modules": 5}, "num_mtp_modules=5 must be between 0 and 4"),
    ({"seq_len": 1}, "num_mtp_modules=1 must be less than model_cfg.seq_len=1"),
    ({"spec_draft_tokens": -1}, "spec_draft_tokens=-1 must not be negative"),
    ({"num_mtp_modules": 0}, "spec_draft_tokens=1 needs a module to draft"),
    ({"mtp_lambda": -0.1}, "mtp_lambda=-0.1 must not be negative"),
    ({"mtp_lambda": 0.0}, "mtp_lambda=0 trains no module"),
    ({"mtp_lambda_final": -0.1}, "mtp_lambda_final=-0.1 must not be negative"),
    ({"mtp_lambda_final": None}, "mtp_lambda_final=null leaves"),
    (
        {"mtp_lambda_schedule": "step", "mtp_lambda_switch": None},
        "mtp_lambda_schedule=step needs model_cfg.mtp_lambda_switch",
    ),
    ({"mtp_lambda_switch": 1.0}, "mtp_lambda_switch=1.0 must be between 0 and 1"),
    (
        {"mtp_lambda_schedule": "constant", "mtp_lambda_final": 0.2},
        "mtp_lambda_final=0.2 has no effect with model_cfg.mtp_lambda_schedule=constant",
    ),
    (
        {"mtp_lambda_switch": 0.5},
        "mtp_lambda_switch=0.5 has no effect with model_cfg.mtp_lambda_schedule=linear",
    ),
    (
        {"num_mtp_modules": 0, "spec_draft_tokens": 0, "mtp_block": "mlp"},
        "mtp_block=mlp has no effect with model_cfg.num_mtp_modules=0",
    ),
)


def test_all_problems_come_at_once() -> None:
    assert_problems("mtm", {"num_heads": 5, "num_mtp_modules": 5, "mtp_lambda": -1.0}, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mtp_lambda_final": 0.5}, "mtp_lambda_final=0.5 exceeds model_cfg.mtp_lambda=0.3"),
        ({"spec_draft_tokens": 2}, "spec_draft_tokens=2 exceeds model_cfg.num_mtp_modules=1"),
    ],
    ids=["rising", "more-drafts"],
)
def test_an_odd_setting_is_pointed_out(changes: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        model_config("mtm", changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_mtp_modules": 0, "spec_draft_tokens": 0},
        {"mtp_lambda": 0.0, "mtp_lambda_final": 0.0, "mtp_detach": "hidden"},
        {"mtp_block": "mlp"},
    ],
    ids=["default", "control", "idle", "mlp"],
)
def test_a_sound_setting_says_nothing(changes: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_config("mtm", changes)


def test_a_key_that_changed_nothing_is_refused() -> None:
    overrides = ["model=mtm", "+model_cfg.mtp_hidden=post_norm"]
    with pytest.raises(ConfigError, match=r"mtp_hidden is called model_cfg\.nothing: a final norm"):
        training_config(compose_config(overrides))


def test_a_key_of_another_code_base_is_named() -> None:
    overrides = ["model=mtm", "+model_cfg.num_nextn_predict_layers=1"]
    with pytest.raises(ConfigError, match=r"is called model_cfg\.num_mtp_modules here"):
        training_config(compose_config(overrides))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mtp_lambda_schedule": "constant"}, [0.3, 0.3, 0.3]),
        ({"mtp_lambda_schedule": "linear"}, [0.3, 0.2, 0.1]),
        ({"mtp_lambda_schedule": "step", "mtp_lambda_switch": 0.5}, [0.3, 0.1, 0.1]),
        ({"mtp_lambda_schedule": "step", "mtp_lambda_switch": 0.6}, [0.3, 0.3, 0.1]),
    ],
    ids=["constant", "linear", "step", "later-step"],
)
def test_weight_over_the_run(settings: dict[str, Any], expected: list[float]) -> None:
    config = model_config("mtm", settings)
    found = [config.module_weight(progress) for progress in (0.0, 0.5, 1.0)]
    assert found == pytest.approx(expected)
