"""The forms that transformers has, on weights away from the start; nothing is downloaded."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nanozoo_core.config import model_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import perturb
from nanozoo_vanilla.adapter import VanillaAdapter
from nanozoo_vanilla.config import VanillaConfig
from nanozoo_vanilla.model import Control

transformers = pytest.importorskip("transformers")

ADAPTER = VanillaAdapter(VanillaConfig, Control)
SMALL = {"vocab_size": 61, "seq_len": 24, "num_layers": 2, "model_dim": 32, "num_heads": 2}


def build(**changes):
    torch.manual_seed(0)
    return perturb(ADAPTER.make_model(model_config("vanilla", SMALL | changes)).eval(), 0.2)


def exported(model, folder):
    """What transformers loads of it."""
    config, tensors = ADAPTER.to_hf(model)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded, about = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    return loaded.eval()


def tokens():
    return torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "NanoChatForCausalLM"),
        ({"pad_vocab_to": 32, "mlp_ratio": 2.0}, "NanoChatForCausalLM"),
        ({"preset": "custom", "norm_eps": 1e-3}, "NanoChatForCausalLM"),
        ({"preset": "v5"}, "GPT2LMHeadModel"),
        ({"preset": "v6", "pad_vocab_to": 32}, "GPT2LMHeadModel"),
        ({"preset": "v7", "norm_eps": 1e-3}, "GPT2LMHeadModel"),
        (
            {"preset": "custom", "qk_norm": False, "activation": "swiglu", "rope_base": 500},
            "LlamaForCausalLM",
        ),
        ({"preset": "custom", "qk_norm": False, "norm_embedding": False}, "ArceeForCausalLM"),
        ({"preset": "custom", "activation": "swiglu"}, "Qwen3ForCausalLM"),
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_are_the_same_there(changes, name, tmp_path):
    model = build(**changes)
    theirs = exported(model, tmp_path)
    assert type(theirs).__name__ == name
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cached_generation_there_is_greedy_here(tmp_path):
    model = build()
    prompt = tokens()[:1, :5]
    written = exported(model, tmp_path).generate(
        prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    text = prompt
    for _ in range(12):
        text = torch.cat([text, model(text)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(written, text)


@pytest.mark.parametrize("preset", ["v0", "v3", "v4", "v8", "v9", "v12"])
def test_other_forms_are_refused(preset):
    with pytest.raises(ConfigError, match=f"preset={preset} .* control and v5 .. v7 have one"):
        ADAPTER.to_hf(build(preset=preset))


def test_a_switch_that_the_class_lacks_is_refused():
    with pytest.raises(ConfigError, match="preset=custom"):
        ADAPTER.to_hf(build(preset="custom", qk_norm=False, activation="gelu_tanh"))
