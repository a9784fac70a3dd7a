"""The mixtures that transformers has, on weights away from the start; nothing is downloaded."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nanozoo_core.config import model_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import perturb
from nanozoo_moe.adapter import MoEAdapter
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.model import MoE

transformers = pytest.importorskip("transformers")

ADAPTER = MoEAdapter(MoEConfig, MoE)
SMALL = {"vocab_size": 61, "seq_len": 24, "num_layers": 3, "model_dim": 32, "num_heads": 2}


def build(**changes):
    torch.manual_seed(0)
    model = perturb(MoE(model_config("moe", SMALL | changes)).eval(), 0.2)
    for _, router in model.routers():
        if router.choice_bias is not None:  # it decides the choice alone
            router.choice_bias.normal_(std=0.3)
    return model


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "Dots1ForCausalLM"),
        (
            {"num_shared_experts": 2, "first_k_dense": 0, "routed_scaling_factor": 0.7,
             "balance": "none"},
            "Dots1ForCausalLM",
        ),
        ({"preset": "moe_mixtral"}, "Qwen3MoeForCausalLM"),
        ({"preset": "moe_olmoe", "model_dim": 16}, "Qwen3MoeForCausalLM"),
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_logits_are_the_same_there(changes, name, tmp_path):
    model = build(**changes)
    config, tensors = ADAPTER.to_hf(model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, about = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert type(theirs).__name__ == name
    tokens = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(theirs.eval()(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"num_shared_experts": 0}, {"score_func": "softmax"}, {"num_experts": 1}],
    ids=str,
)
def test_mixtures_that_no_class_has_are_refused(changes):
    with pytest.raises(ConfigError, match="has no class in transformers that computes the same"):
        ADAPTER.to_hf(build(**changes))
