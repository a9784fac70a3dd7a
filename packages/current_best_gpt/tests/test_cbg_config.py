"""Refusals: each names the key, the value and what would be right."""

from pathlib import Path

import pytest
import torch

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_current_best_gpt import schedule
from nanozoo_current_best_gpt.model import CurrentBestGPT

RECIPES = Path(__file__).parents[3] / "configs"

REFUSED = [
    ({"num_heads": 1}, "num_heads=1 is odd; model_cfg.paired_layers needs pairs"),
    ({"num_heads": 5}, "num_heads=5 does not divide"),
    ({"model_dim": 72, "num_heads": 4}, "heads of width 18, which model_cfg.key_offset"),
    ({"window_pattern": "SLS"}, "window_pattern=SLS has 3 layers, model_cfg.num_layers=4"),
    ({"window_pattern": "SLXL"}, "window_pattern=SLXL may hold S, L and - only"),
    ({"paired_layers": (4,)}, "paired_layers names layer 4; there are 0 .. 3"),
    ({"paired_layers": (1,)}, "also in model_cfg.xsa_layers, model_cfg.window_pattern as L"),
    ({"paired_layers": (2,), "dc_layers": (2,)}, "also in model_cfg.dc_layers"),
    ({"window_pattern": "S-SL"}, "xsa_layers names layer 1, which model_cfg.window_pattern=S-SL"),
    ({"skip": (2, 1)}, "skip=(2, 1) must be [from, to]"),
    ({"skip": (0, 2)}, "to a layer without attention"),
    ({"snapshot_layer": 3}, "snapshot_layer=3 must be one of 0 .. 2"),
    ({"snapshot_layer": None}, "model_cfg.shared_attention_input and model_cfg.backout without"),
    ({"bigram_rows": 1}, "bigram_rows=1 has no room"),
    ({"bigram_rows": 0, "bigram_sign_rows": 9}, "bigram_sign_rows=9 has no effect with"),
    ({"mudd": False, "mudd_dim": 8}, "mudd_dim=8 has no effect with model_cfg.mudd=false"),
    ({"dc_layers": (), "dc_window": 8}, "dc_window=8 has no effect with"),
    ({"gates_per_token": False, "gate_dim": 8}, "gate_dim=8 has no effect with"),
    ({"value_embed_layers": (), "value_gates": False}, "value_gates=false has no effect with"),
    ({"windows": ((32, 64),), "yarn": True}, "yarn=true has no effect with"),
    ({"windows": ((0, 128),)}, "windows has [0, 128]"),
    ({"windows": ((64, 32),)}, "windows has [64, 32]; use 1 <= short <= long"),
    ({"windows": ((8, 16),)}, "dc_window=32 is more than the 17 keys"),
    ({"windows": ((8, 64),) * 3}, "windows has 3 entries; use one for each of the 2 stages"),
    ({"stage_starts": (0.1, 0.5)}, "stage_starts=[0.1, 0.5] must rise from 0"),
    ({"eval_window_long": 100}, "eval_window_long=100 is below the last long window, 256"),
    ({"mtp_weights": (((1.0, 0.5), (1.0,)),)}, "mtp_weights="),
    ({"prefix_weight": ((-0.1, 0.0),)}, "must not be negative"),
    ({"softcap": (23.0, 5.0)}, "softcap=(23.0, 5.0) must be [A, B, C]"),
    ({"untie_at": 1.0}, "untie_at=1.0 must be in [0, 1)"),
    ({"gate_split_layer": 4}, "gate_split_layer=4 must be one of 1 .. 3"),
    ({"qk_head_group": 3}, "qk_head_group=3 does not divide model_cfg.num_heads=4"),
    ({"rope_fraction": 0.3}, "rope_fraction=0.3 of heads of width 32"),
    ({"model_dim": 8}, "model_dim=8 must be at least 12"),
    ({"batch_scale": (0.0,)}, "batch_scale=(0.0,) must be positive"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[m[:30] for _, m in REFUSED])
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        model_config("current_best_gpt", changes)
    assert any(message in problem for problem in error.value.problems), error.value.problems


def test_all_problems_are_named_at_once():
    changes = {"num_heads": 5, "bigram_rows": 1, "untie_at": 2.0, "window_pattern": "SLS"}
    with pytest.raises(ConfigError) as error:
        model_config("current_best_gpt", changes)
    assert len(error.value.problems) >= 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.tokenizer=bytes", "model_cfg.prefix_weight=[[0.25,0]]"],
            "prefix_weight=.* needs tokens of several bytes",
        ),
        (["model_cfg.seq_lens=[512]"], "seq_lens=.* exceeds data.seq_len=256"),
        (["+model_cfg.align_to_documents=true"], "nothing: use data.packing=documents"),
        (["model_cfg.use_fp8=true"], "use_fp8 is called model_cfg.nothing: float8 is left out"),
        (["model_cfg.shared_attn_input_after=7"], "is called model_cfg.snapshot_layer"),
    ],
)
def test_settings_are_checked_against_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        training_config(compose_config(["model=current_best_gpt", *overrides]))


def test_the_recipe_builds_the_record():
    config = training_config(compose_config(recipe=RECIPES / "current_best_gpt.yaml"))
    model_cfg = model_config(config.model, config.model_cfg, seq_len=2048)
    with torch.device("meta"):
        model = CurrentBestGPT(model_cfg)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    adapter = load_adapter("current_best_gpt")
    roles = adapter.parameter_roles(model)
    matrices = {n: size for n, size in sizes.items() if roles[n] == "matrix"}
    attention = sum(size for n, size in matrices.items() if ".attention." in n)
    assert attention == 10 * 4 * 768**2
    assert sum(matrices.values()) - attention == 11 * 8 * 768**2
    assert sizes["embedding.weight"] == sizes["head.weight"] == 50304 * 768
    assert sum(size for n, size in sizes.items() if n.startswith("tables.")) == 5 * 50304 * 768
    assert sizes["bigram.table.weight"] == 377_280 * 768
    # The record stores a twelfth MLP that nothing reads.
    assert sum(sizes.values()) == pytest.approx(640.6e6 - 8 * 768**2, abs=0.1e6)
    report = adapter.report(model)
    assert report["params"] - report["params_tables"] == pytest.approx(152.9e6, abs=0.2e6)
    # Decoding keeps rings as long as the windows of a trained model, whatever the text's length.
    assert report["cache_bytes_per_token"] == 0
    cache = model.init_cache(1, 8192)
    assert max(cache.sizes.values()) == schedule.windows(model_cfg, model_cfg.num_stages)[1] + 17
    assert report["state_bytes"] == cache.num_bytes
