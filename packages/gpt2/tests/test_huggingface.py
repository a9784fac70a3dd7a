"""Parity with transformers' GPT2LMHeadModel on random weights; nothing is downloaded."""

import pytest
import torch
from gpt2_models import make_config

from nanozoo_core.errors import CheckpointError
from nanozoo_core.testing.huggingface import HuggingFaceLaws, tokens
from nanozoo_core.testing.laws import assert_same_tensors, perturb
from nanozoo_gpt2 import huggingface
from nanozoo_gpt2.huggingface import (
    from_hf_config,
    from_hf_state_dict,
    load_pretrained,
    load_weights,
    save_pretrained,
    to_hf_config,
)
from nanozoo_gpt2.model import GPT2

transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 97, "n_positions": 32, "n_embd": 128, "n_layer": 4, "n_head": 4}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SHAPE, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    return perturb(model, 0.05)  # so far that activations leave the linear part of the GELU


@pytest.fixture
def ours(theirs):
    model = GPT2(from_hf_config(theirs.config.to_dict())).eval()
    load_weights(model, theirs.state_dict())
    return model


class TestLaws(HuggingFaceLaws):
    way = huggingface
    depth = "n_layer"


@torch.no_grad()
def test_the_other_gelu_would_show(theirs):
    exact = from_hf_config(theirs.config.to_dict() | {"activation_function": "gelu"})
    model = GPT2(exact).eval()
    load_weights(model, theirs.state_dict())
    assert (model(tokens()) - theirs(tokens()).logits).abs().max() > 5e-5


def test_a_tied_head_is_not_written(ours):
    assert "lm_head.weight" not in huggingface.to_hf_state_dict(ours)


def test_released_names_and_mask_buffers_are_accepted(theirs, ours):
    released = {
        name.removeprefix("transformer."): tensor
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    released["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    released["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert_same_tensors(from_hf_state_dict(released), ours.state_dict())


@torch.no_grad()
def test_padding_of_the_vocabulary_is_not_saved(ours, tmp_path):
    save_pretrained(ours, tmp_path / "first")
    model = load_pretrained(tmp_path / "first", pad_vocab_to=64).eval()
    save_pretrained(model, tmp_path / "second")
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "second").eval()
    torch.testing.assert_close(loaded(tokens()).logits, ours(tokens()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"bias": False}, {"tie_embeddings": False}, {"activation": "gelu"}, {"mlp_ratio": 2.0}],
    ids=lambda changes: next(iter(changes)),
)
@torch.no_grad()
def test_variants_export_too(tmp_path, changes):
    torch.manual_seed(0)
    config = make_config(
        vocab_size=97, seq_len=32, num_layers=2, model_dim=32, num_heads=4, **changes
    )
    model = GPT2(config).eval()
    save_pretrained(model, tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()), rtol=0, atol=1e-5)


def test_our_config_makes_the_round_trip():
    config = make_config(vocab_size=97, seq_len=32, num_layers=3, mlp_ratio=2.0, activation="gelu")
    assert from_hf_config(to_hf_config(config)) == config


def test_a_setting_that_gpt2_lacks_is_refused():
    theirs = to_hf_config(make_config(vocab_size=97, seq_len=32))
    changes = {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}
    with pytest.raises(CheckpointError, match=r"inverse_layer_idx=True .*activation_function=relu"):
        from_hf_config(theirs | changes)
