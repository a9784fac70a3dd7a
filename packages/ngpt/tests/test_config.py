import pytest
from ngpt_models import make_config

from nanozoo_core.config import compose_config, training_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.refusals import CONTROL_CASES, assert_problems, refusal_test

test_a_value_out_of_range_is_refused = refusal_test(
    "ngpt",
    *CONTROL_CASES,
    ({"model_dim": 12}, "num_heads=4 makes heads of odd width 3, .* use 1, 2, 3, 6"),
    ({"alpha_init": 1.5}, r"alpha_init=1.5 must be in \(0, 1\] or null"),
    ({"alpha_init": 0.0}, r"alpha_init=0.0 must be in \(0, 1\] or null"),
    ({"alpha_scale": 0.0}, "alpha_scale=0.0 must be positive or null"),
    ({"sqk_scale": -1.0}, "sqk_scale=-1.0 must be positive or null"),
    ({"sz_scale": 0.0}, "sz_scale=0.0 must be positive or null"),
    ({"qk_scale": "none", "sqk_scale": 1.0}, "sqk_scale=1.0 has no effect .*qk_scale=none"),
    ({"rope_base": 0.0}, "rope_base=0.0 must be positive"),
    ({"pad_vocab_to": 0}, "pad_vocab_to=0 must be at least 1"),
)


def test_all_problems_come_at_once():
    assert_problems("ngpt", {"num_heads": 5, "alpha_init": 2.0, "seq_len": 0}, 3)


@pytest.mark.parametrize(("layers", "alpha"), [(4, 0.25), (10, 0.1)])
def test_alpha_starts_at_one_over_the_layers_where_it_is_null(layers, alpha):
    assert make_config(num_layers=layers, alpha_init=None).first_alpha == pytest.approx(alpha)
    assert make_config(num_layers=layers, alpha_init=0.3).first_alpha == 0.3


@pytest.mark.parametrize(
    ("ratio", "dim", "width"), [(2.667, 128, 320), (4, 128, 512), (2.9, 128, 384), (0.1, 32, 64)]
)
def test_the_mlp_has_the_nearest_width_of_64_each(ratio, dim, width):
    assert make_config(mlp_ratio=ratio, model_dim=dim).mlp_dim == width


def check(*overrides):
    return training_config(compose_config(["model=ngpt", *overrides]))


@pytest.mark.parametrize("key", ["optim.weight_decay", "optim.muon.weight_decay"])
@pytest.mark.parametrize("form", ["project", "reparam"])
def test_weight_decay_is_refused(key, form):
    with pytest.raises(ConfigError, match=rf"{key}=0.1 has no use with .*weight_norm={form}"):
        check(f"{key}=0.1", f"model_cfg.weight_norm={form}")


def test_averaged_weights_need_the_reparametrised_form():
    with pytest.raises(ConfigError, match=r"train\.ema=0\.9 averages weights"):
        check("train.ema=0.9")
    assert check("train.ema=0.9", "model_cfg.weight_norm=reparam").train.ema == 0.9


@pytest.mark.parametrize("key", ["use_fp8", "dropout", "zero_init", "n_heads"])
def test_keys_of_other_designs_are_unknown(key):
    with pytest.raises(ConfigError, match=rf"model_cfg\.{key}"):
        check(f"model_cfg.{key}=1")


@pytest.mark.parametrize(
    ("dim", "ratio", "width"), [(128, 2.667, 320), (768, 2.667, 2048), (768, 4, 3072), (16, 1, 64)]
)
def test_mlp_width_is_rounded_to_64(dim, ratio, width):
    assert make_config(model_dim=dim, mlp_ratio=ratio).mlp_dim == width
