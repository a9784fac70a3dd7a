import warnings

import pytest
from rd_models import make_config

from nanozoo_core.config import (
    TrainingConfig,
    compose_config,
    from_defaults,
    training_config,
)
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import assert_other_names_are_refused_with_ours
from nanozoo_core.testing.refusals import assert_problems, refusal_test

test_a_value_out_of_range_is_refused = refusal_test(
    "rd",
    ({"num_heads": 5}, "num_heads=5 does not divide model_cfg.model_dim=128; use 1, 2, 4, 8"),
    ({"num_heads": 128}, "num_heads=128 makes heads of odd width 1"),
    ({"num_core_layers": 0}, "num_core_layers=0 must be at least 1"),
    ({"num_prelude_layers": -1}, "num_prelude_layers=-1 must be at least 0"),
    ({"num_coda_layers": -1}, "num_coda_layers=-1 must be at least 0"),
    ({"num_layers": 7}, "num_layers=7 is not the sum of .*, 4; leave it null"),
    ({"mlp_dim": 0}, "mlp_dim=0 must be at least 1 or null"),
    ({"vocab_size": 1}, "vocab_size=1 must be at least 2 or null"),
    ({"mean_recurrence": 0.5}, "mean_recurrence=0.5 must be at least 1"),
    ({"k_trunc": 0}, "k_trunc=0 must be at least 1, or full"),
    ({"eval_recurrence": 0}, "eval_recurrence=0 must be at least 1"),
    ({"r_max": 3}, "r_max=3 is below model_cfg.mean_recurrence=4; raise it"),
    ({"r_max": 9, "sampling": "fixed"}, "r_max=9 has no effect with model_cfg.sampling=fixed"),
    ({"lognorm_sigma": -0.1}, "lognorm_sigma=-0.1 must not be negative"),
    (
        {"lognorm_sigma": 0.5, "sampling": "fixed"},
        "lognorm_sigma=0.5 has no effect with model_cfg.sampling=fixed",
    ),
    ({"curriculum_fraction": 0.5}, "curriculum_fraction=0.5 has no effect"),
    (
        {"curriculum_fraction": 1.5, "recurrence_curriculum": "linear"},
        r"curriculum_fraction=1.5 must be in \(0, 1\]",
    ),
    ({"s0_std": -1.0}, "s0_std=-1.0 must not be negative"),
    ({"rope_base": 1.0}, "rope_base=1.0 must be above 1"),
    ({"kv_budget": 0}, "kv_budget=0 must be at least 1 or null"),
    ({"exit_threshold": 0.1}, "exit_threshold=0.1 has no effect with"),
    (
        {"prefill": "parallel"},
        "prefill=parallel has no effect without model_cfg.exit",
    ),
    (
        {"exit_threshold": 0.0, "exit_criterion": "kl"},
        "exit_threshold=0.0 must be positive",
    ),
)


def test_all_problems_come_at_once():
    assert_problems("rd", {"num_heads": 5, "k_trunc": 0, "kv_budget": 0, "s0_std": -1.0}, 4)


def test_names_of_other_code_are_refused_with_ours():
    others = {
        "l_p": "num_prelude_layers",
        "l_core": "num_core_layers",
        "l_c": "num_coda_layers",
        "mlp_hidden": "mlp_dim",
        "lognorm_var": "lognorm_sigma",
    }
    assert_other_names_are_refused_with_ours("rd", others)


@pytest.mark.parametrize(
    "changes", [{"exit_criterion": "kl"}, {"exit_criterion": "latent"}, {"kv_budget": 4}], ids=str
)
def test_what_belongs_to_decoding_is_refused_in_training(changes):
    ((key, value),) = changes.items()
    (problem,) = make_config(**changes).check_training(
        from_defaults(TrainingConfig, model="rd", model_cfg={})
    )
    assert f"model_cfg.{key}={value} is for decoding" in problem
    overrides = ["model=rd", f"model_cfg.{key}={value}"]
    with pytest.raises(ConfigError, match=f"{key}={value} is for decoding"):
        training_config(compose_config(overrides))


def test_an_ordinary_training_has_no_problem():
    assert (
        make_config().check_training(from_defaults(TrainingConfig, model="rd", model_cfg={})) == []
    )


def test_a_clamp_that_moves_the_mean_is_pointed_out():
    with pytest.warns(UserWarning, match=r"r_max=64 cuts 6% .* lowers their mean to 32\.0"):
        make_config(mean_recurrence=32, r_max=64)


def test_a_clamp_in_the_far_tail_is_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_config(mean_recurrence=4, r_max=16)


def test_scoring_deeper_than_any_training_step_is_pointed_out():
    with pytest.warns(UserWarning, match=r"eval_recurrence=32 is above model_cfg.r_max=16"):
        make_config(r_max=16, eval_recurrence=32)


def test_the_preset_fills_what_is_left_open():
    assert make_config().depths == (4, 2, 4)
    assert make_config(preset="rd_paper").depths == (32, 8, 32)
    assert make_config(preset="rd_paper", eval_recurrence=64, k_trunc="full").depths == (
        32,
        "full",
        64,
    )


@pytest.mark.parametrize(("dim", "hidden"), [(128, 320), (768, 2048), (16, 64)])
def test_the_default_mlp_is_eight_thirds_wide(dim, hidden):
    assert make_config(model_dim=dim).hidden_dim == hidden


@pytest.mark.parametrize("mode", ["none", "kl", "latent"])
def test_the_prompt_may_be_read_as_published_where_decoding_is_sequential(mode):
    config = make_config(exit_criterion=mode, kv_budget=2, prefill="parallel")
    assert config.prefill == "parallel"
