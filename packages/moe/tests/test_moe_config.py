import dataclasses

import pytest

from nanozoo_core.config import (
    TrainingConfig,
    compose_config,
    from_defaults,
    model_config,
    training_config,
)
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test
from nanozoo_moe.config import PRESETS


def test_null_is_the_tiny_recipe():
    config = model_config("moe")
    assert (config.routed, config.shared, config.expert_dim) == ((8, 2), 1, 176)
    assert (config.balance, config.bias_update_rate, config.seq_aux_alpha) == ("bias", 1e-2, 1e-4)
    assert (config.alpha, config.beta) == (0, 0)
    assert config.routed_scale == 2**0.5
    assert config.first_k_dense == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_routing(name):
    config = model_config("moe", {"preset": name})
    assert {key: getattr(config, key) for key in PRESETS[name]} == PRESETS[name]
    assert (config.alpha, config.bias_update_rate, config.seq_aux_alpha) == (0.01, 0, 0)
    assert config.routed_scale == 1
    assert config.expert_dim * config.routed[1] == config.mlp_dim


def test_mixtral_has_no_dense_layer_and_no_z_loss():
    config = model_config("moe", {"preset": "moe_mixtral"})
    assert (config.first_k_dense, config.beta) == (0, 0)
    assert model_config("moe", {"preset": "moe_olmoe"}).beta == 0.001
    assert model_config("moe", {"balance": "loss", "score_func": "softmax"}).beta == 0.001
    with pytest.raises(ConfigError, match=r"beta=0.01 contradicts model_cfg.preset=moe_mixtral"):
        model_config("moe", {"preset": "moe_mixtral", "beta": 0.01})


def test_a_preset_refuses_another_routing_and_accepts_its_own_again():
    with pytest.raises(ConfigError, match=r"model_cfg.top_k=3 contradicts model_cfg.preset=moe_m"):
        model_config("moe", {"preset": "moe_mixtral", "top_k": 3})
    config = model_config("moe", {"preset": "moe_olmoe"})
    assert dataclasses.replace(config, vocab_size=100).routed == (64, 8)


def test_one_expert_is_the_dense_width():
    config = model_config("moe", {"num_experts": 1})
    assert (config.routed, config.shared, config.balance) == ((1, 1), 0, "none")
    assert config.expert_dim == config.mlp_dim == 512
    assert config.routed_scale == 1


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"model_dim": 768, "num_heads": 6, "top_k": 3, "num_experts": 16}, 768),
        ({"num_shared_experts": 0}, 256),
        ({"moe_hidden": 40}, 40),
        ({"model_dim": 8, "num_heads": 1}, 16),
    ],
)
def test_experts_share_the_dense_width(settings, width):
    assert model_config("moe", settings).expert_dim == width


test_a_wrong_value_is_refused = refusal_test(
    "moe",
    *CONTROL_CASES,
    ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1"),
    ({"num_layers": 0, "first_k_dense": 0}, "num_layers=0 must be at least 1"),
    ({"num_experts": 0}, "num_experts=0 must be at least 1"),
    ({"top_k": 9}, "top_k=9 exceeds model_cfg.num_experts=8"),
    ({"num_shared_experts": -1, "moe_hidden": 16}, "num_shared_experts=-1 must not be negat"),
    ({"moe_hidden": 0}, "moe_hidden=0 must be at least 1 or null"),
    ({"first_k_dense": 5}, "first_k_dense=5 must be between 0 and model_cfg.num_layers=4"),
    ({"top_k": 1}, "top_k=1 with model_cfg.norm_topk_prob=true makes every weight 1"),
    ({"num_experts": 1, "balance": "bias"}, "balance=bias has nothing to balance"),
    ({"num_experts": 1, "balance": "loss"}, "balance=loss has nothing to balance"),
    ({"num_experts": 1, "norm_topk_prob": False}, "norm_topk_prob=false has no meaning"),
    ({"num_experts": 1, "score_func": "softmax"}, "score_func=softmax has no effect with"),
    ({"num_experts": 1, "jitter_noise": 0.1}, "jitter_noise=0.1 has no effect with"),
    (
        {"score_func": "softmax", "norm_topk_prob": False},
        "balance=bias with model_cfg.score_func=softmax and model_cfg.norm_topk_prob=false",
    ),
    ({"alpha": 0.01}, "alpha=0.01 has no effect without model_cfg.balance=loss"),
    (
        {"balance": "loss", "beta": 0.001},
        "beta=0.001 has no effect without model_cfg.balance=loss and model_cfg.score_func=soft",
    ),
    ({"balance": "loss", "seq_aux_alpha": 1e-4}, "seq_aux_alpha=0.0001 has no effect"),
    ({"balance": "none", "bias_update_rate": 0.1}, "bias_update_rate=0.1 has no effect"),
    ({"bias_update_rate": 0.0}, "bias_update_rate=0 balances nothing"),
    ({"bias_update_rate": -1.0}, "bias_update_rate=-1.0 must not be negative"),
    ({"bias_freeze_frac": 1.5}, "bias_freeze_frac=1.5 must be at most 1"),
    ({"routed_scaling_factor": -1.0}, "routed_scaling_factor=-1.0 must not be negative"),
    ({"jitter_noise": 0.5}, r"jitter_noise=0.5 must be in \[0, 0.5\)"),
)


def test_the_untested_balance_can_be_insisted_on():
    settings = {"score_func": "softmax", "norm_topk_prob": False}
    assert model_config("moe", {"allow_untested": True, **settings}).balance == "bias"


def test_all_problems_come_at_once():
    assert_problems("moe", {"num_heads": 5, "top_k": 9, "jitter_noise": 1.0}, 3)


def test_grouped_mm_refuses_rows_that_it_cannot_read():
    config = model_config("moe", {"moe_hidden": 36, "experts_impl": "grouped_mm"})
    assert (
        config.check_training(
            from_defaults(TrainingConfig, model="moe", model_cfg={}, dtype="float32")
        )
        == []
    )
    (problem,) = config.check_training(
        from_defaults(TrainingConfig, model="moe", model_cfg={}, dtype="bfloat16")
    )
    assert "model_cfg.moe_hidden=36 is no multiple of 8" in problem
    assert (
        model_config("moe", {"moe_hidden": 36}).check_training(
            from_defaults(TrainingConfig, model="moe", model_cfg={})
        )
        == []
    )


def test_wrong_settings_are_refused_on_the_command_line():
    data = compose_config(["model=moe", "model_cfg.top_k=9", "model_cfg.alpha=1"])
    with pytest.raises(ConfigError) as caught:
        training_config(data)
    assert len(caught.value.problems) == 2
