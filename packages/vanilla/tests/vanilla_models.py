"""Small models for the tests."""

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.testing.laws import perturb
from nanozoo_vanilla.adapter import VanillaAdapter
from nanozoo_vanilla.config import PRESETS, VanillaConfig
from nanozoo_vanilla.model import Control

VOCAB, LENGTH, DIM, HEADS = 61, 24, 32, 4
SMALL = {
    "vocab_size": VOCAB,
    "seq_len": LENGTH,
    "num_layers": 2,
    "model_dim": DIM,
    "num_heads": HEADS,
}

ADAPTER = VanillaAdapter(VanillaConfig, Control)
every_preset = pytest.mark.parametrize("preset", PRESETS)


def build(**changes):
    torch.manual_seed(0)
    return ADAPTER.make_model(model_config("vanilla", SMALL | changes))


def build_perturbed(**changes):
    """Weights far enough from the start that every part of the forward pass matters."""
    return perturb(build(**changes))


def random_tokens(batch=3, length=LENGTH, vocab=VOCAB):
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(1))
