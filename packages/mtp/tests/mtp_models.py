"""Small models for the tests; B batch, T sequence, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Step
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.training import move
from nanozoo_mtp.adapter import MTPAdapter
from nanozoo_mtp.config import MTPConfig
from nanozoo_mtp.model import MTP

VOCAB = 31
ADAPTER = MTPAdapter(MTPConfig, MTP)
STEP = Step(number=0, progress=0.0, seed=0)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "seq_len": 48,
    "num_layers": 4,
    "model_dim": 32,
    "num_heads": 2,
    "num_mtp_tokens": 3,
}


def build(*, moved: float = 0.1, dtype: torch.dtype = torch.float32, **settings: Any) -> MTP:
    """A model whose weights are all away from zero, unless moved=0."""
    torch.manual_seed(0)
    model = MTP(model_config("mtp", SMALL | settings)).to(dtype)
    move(model, moved)
    return model


def random_tokens(rows: int, length: int, seed: int = 0, vocab_size: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=generator)


def random_batch(rows: int = 4, length: int = 24, lookahead: int = 1, seed: int = 0) -> Batch:
    return batch_of(random_tokens(rows, length + lookahead, seed), lookahead=lookahead)


def all_logits(model: MTP, tokens: Tensor) -> Tensor:
    """(n, B, T, V) of all heads."""
    return torch.stack([model.logits(features) for features in model.horizons(tokens)])
