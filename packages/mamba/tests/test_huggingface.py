"""Parity with transformers' MambaForCausalLM and Mamba2ForCausalLM on random weights; nothing is
downloaded."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError
from nanozoo_core.testing.huggingface import HuggingFaceLaws, tokens
from nanozoo_core.testing.laws import assert_same_tensors
from nanozoo_mamba import huggingface
from nanozoo_mamba.adapter import MambaAdapter
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.huggingface import (
    from_hf_config,
    from_hf_state_dict,
    load_pretrained,
    load_weights,
    save_pretrained,
    to_hf_config,
    to_hf_state_dict,
)
from nanozoo_mamba.model import Mamba

transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "tie_word_embeddings": True}
CASES = {
    "mamba1": ("Mamba", {"state_size": 16}),
    "mamba1, biases": ("Mamba", {"state_size": 5, "use_bias": True, "use_conv_bias": False}),
    "mamba2": (
        "Mamba2",
        {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "mamba2, groups": (
        "Mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16,
         "use_bias": True, "tie_word_embeddings": False},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def theirs(request):
    family, settings = CASES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from gains and biases of 1 and 0
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def ours(theirs):
    model = Mamba(from_hf_config(theirs.config.to_dict())).eval()
    load_weights(model, theirs.state_dict())
    return model


class TestLaws(HuggingFaceLaws):
    way = huggingface
    depth = "num_hidden_layers"


@torch.no_grad()
def test_cached_decoding_agrees_with_their_whole_pass(theirs, ours):
    expected = theirs(tokens()).logits
    cache = ours.init_cache(2, 32)
    parts = [ours(tokens()[:, :7], cache), ours(tokens()[:, 7:9], cache)]
    parts += [ours(token[:, None], cache) for token in tokens()[:, 9:].unbind(1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-5)


def test_the_config_makes_the_round_trip(theirs, ours):
    back = to_hf_config(ours.config)
    source = theirs.config.to_dict()
    assert {key: source[key] for key in back if key in source and "token_id" not in key} == {
        key: value for key, value in back.items() if key in source and "token_id" not in key
    } | {"architectures": source["architectures"]}
    assert from_hf_config(back) == ours.config


@torch.no_grad()
def test_what_transformers_saves_is_loaded(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)


def make(**settings):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "seq_len": 32, "num_layers": 2, "model_dim": 32}
    return Mamba(model_config("mamba", shape | settings))


def test_the_authors_names_are_accepted():
    model = make()
    released = to_hf_state_dict(model)
    released["backbone.embedding.weight"] = released.pop("backbone.embeddings.weight")
    released["lm_head.weight"] = released["backbone.embedding.weight"]
    assert_same_tensors(from_hf_state_dict(released, "mamba1"), model.state_dict())


def test_a_model_with_mlps_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"mlp_dim=48 adds MLPs"):
        save_pretrained(make(mlp_dim=48), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type=gpt2 must be one of mamba, mamba2"),
        ({"intermediate_size": 100}, r"intermediate_size=100 must be expand \* hidden_size=64"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu must be silu"),
        ({"conv_kernel": 9}, "d_conv=9 must be 2, 3 or 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_model_lacks_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        from_hf_config(to_hf_config(make().config) | changes)


def test_cut_step_sizes_are_refused():
    theirs = to_hf_config(make(variant="mamba2").config) | {"time_step_limit": [0.0, 0.5]}
    with pytest.raises(CheckpointError, match="time_step_limit"):
        from_hf_config(theirs)


@torch.no_grad()
def test_the_adapter_exports_the_same(ours, tmp_path):
    adapter = MambaAdapter(MambaConfig, Mamba)
    config, tensors = adapter.to_hf(ours)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens()).logits, ours(tokens()), rtol=0, atol=1e-5)
