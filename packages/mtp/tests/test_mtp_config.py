from __future__ import annotations

import warnings
from typing import Any

import pytest

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test

test_a_wrong_value_is_refused = refusal_test(
    "mtp",
    *CONTROL_CASES,
    ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1"),
    ({"num_layers": 0, "head_type": "linear"}, "num_layers=0 must be at least 1"),
    ({"num_mtp_tokens": 0}, "num_mtp_tokens=0 must be between 1 and 8"),
    ({"num_mtp_tokens": 9, "num_layers": 12}, "num_mtp_tokens=9 must be between 1 and 8"),
    ({"num_mtp_tokens": 4}, "num_mtp_tokens=4 leaves no trunk below the heads"),
    ({"seq_len": 2}, "seq_len=2 must exceed model_cfg.num_mtp_tokens=2"),
    ({"mtp_anneal_frac": 0.0}, r"mtp_anneal_frac=0.0 must be in \(0, 1\]"),
    ({"mtp_loss_weights": (1.0,)}, r"mtp_loss_weights=\[1.0\] has 1 entries"),
    ({"mtp_loss_weights": (1.0, -1.0)}, r"mtp_loss_weights=\[1.0, -1.0\] must not be neg"),
    ({"mtp_loss_weights": (0.0, 1.0)}, r"mtp_loss_weights=\[0.0, 1.0\] must begin above 0"),
    ({"head_type": "shared"}, "head_type=shared with model_cfg.mtp_weight_schedule=constant"),
)


def test_all_problems_come_at_once() -> None:
    assert_problems("mtp", {"num_heads": 5, "num_mtp_tokens": 4, "seq_len": 3}, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_mtp_tokens": 1, "head_backward": "sequential"},
            "no effect with model_cfg.num_mtp_tokens=1",
        ),
        (
            {"num_mtp_tokens": 1, "cross_document_targets": True},
            "cross_document_targets=true has no effect with model_cfg.num_mtp_tokens=1",
        ),
        ({"mtp_anneal_frac": 0.5}, "no effect with model_cfg.mtp_weight_schedule=constant"),
    ],
    ids=["backward", "documents", "anneal"],
)
def test_a_setting_without_effect_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("mtp", changes)


def test_the_default_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_config("mtp")


def test_a_key_of_another_code_base_is_named() -> None:
    overrides = ["model=mtp", "+model_cfg.n_future_tokens=4"]
    with pytest.raises(ConfigError, match=r"is called model_cfg\.num_mtp_tokens here"):
        training_config(compose_config(overrides))


@pytest.mark.parametrize("setting", ["distributed.strategy=fsdp", "dtype=float16"])
def test_gradients_in_the_forward_pass_do_not_go_with_every_setting(setting: str) -> None:
    overrides = ["model=mtp", "model_cfg.head_backward=sequential", setting]
    with pytest.raises(ConfigError, match="head_backward=sequential makes gradients in the"):
        training_config(compose_config(overrides))


@pytest.mark.parametrize(
    ("settings", "progress", "expected"),
    [
        ({}, 0.9, [1, 1, 1]),
        ({"mtp_loss_weights": (1.0, 0.5, 0.1)}, 0.0, [1, 0.5, 0.1]),
        ({"mtp_weight_schedule": "linear_to_next"}, 0.7, [1, 1, 1]),
        ({"mtp_weight_schedule": "linear_to_next"}, 0.85, [1, 0.5, 0.5]),
        ({"mtp_weight_schedule": "linear_to_next"}, 1.0, [1, 0, 0]),
        (
            {
                "head_type": "shared",
                "mtp_weight_schedule": "linear_to_next",
                "mtp_anneal_frac": 1.0,
            },
            0.5,
            [1, 0.25, 0.125],
        ),
    ],
)
def test_weights_over_the_run(
    settings: dict[str, Any], progress: float, expected: list[float]
) -> None:
    config = model_config("mtp", {"num_mtp_tokens": 3, **settings})
    assert config.loss_weights(progress) == pytest.approx(expected)


def test_heads_are_among_the_layers() -> None:
    assert model_config("mtp", {"num_layers": 12, "num_mtp_tokens": 4}).num_trunk_layers == 8
    assert model_config("mtp", {"num_mtp_tokens": 4, "head_type": "linear"}).num_trunk_layers == 4
