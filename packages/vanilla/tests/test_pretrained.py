"""Weights of transformers as a form of the decoder, on random weights; nothing is downloaded."""

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError
from nanozoo_core.testing.laws import perturb
from nanozoo_vanilla.adapter import VanillaAdapter
from nanozoo_vanilla.config import VanillaConfig
from nanozoo_vanilla.model import Control
from nanozoo_vanilla.pretrained import from_hf_config

transformers = pytest.importorskip("transformers")

ADAPTER = VanillaAdapter(VanillaConfig, Control)
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
CASES = {
    "llama, shared keys, tied": (
        "Llama",
        SHAPE | ROPE | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "arcee": ("Arcee", SHAPE | {"num_key_value_heads": 4, "rms_norm_eps": 1e-3}),
    "nanochat": ("NanoChat", SHAPE | {"num_key_value_heads": 4, "final_logit_softcapping": None}),
    "gpt2": (
        "GPT2",
        {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4},
    ),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_the_same_here(case):
    family, settings = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    theirs = perturb(getattr(transformers, f"{family}{head}")(config).eval(), 0.2)
    about = config.to_dict()
    ours_config = ADAPTER.config_from_hf(about)
    ours = ADAPTER.make_model(ours_config).eval()
    ours.load_state_dict(ADAPTER.weights_from_hf(theirs.state_dict(), about, ours_config))
    tokens = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "v6"},
        {"preset": "custom", "qk_norm": False, "activation": "swiglu", "rope_base": 500},
    ],
    ids=str,
)
@torch.no_grad()
def test_what_we_export_is_read_back(changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "seq_len": 24, "num_layers": 2, "model_dim": 32, "num_heads": 2}
    model = perturb(ADAPTER.make_model(model_config("vanilla", shape | changes)).eval(), 0.2)
    about, tensors = ADAPTER.to_hf(model)
    read = ADAPTER.config_from_hf(about)
    again = ADAPTER.make_model(read).eval()
    again.load_state_dict(ADAPTER.weights_from_hf(tensors, about, read))
    tokens = torch.arange(24)[None]
    torch.testing.assert_close(again(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type=qwen2 must be one of gpt2, nanochat, llama, arcee"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu must be silu"),
        ({"attention_bias": True}, "attention_bias=True must be False"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type=llama3 must be default"),
        ({"head_dim": 16}, "head_dim=16 must be 8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_form_computes_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        from_hf_config(SHAPE | {"model_type": "llama"} | changes)
