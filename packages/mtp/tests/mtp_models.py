"""Small models for the tests; B batch, T sequence, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.testing import multi_token
from nanozoo_mtp.adapter import MTPAdapter
from nanozoo_mtp.config import MTPConfig
from nanozoo_mtp.model import MTP

ADAPTER = MTPAdapter(MTPConfig, MTP)
SMALL: dict[str, Any] = multi_token.SMALL | {"num_layers": 4, "num_mtp_tokens": 3}


def build(*, moved: float = 0.1, dtype: torch.dtype = torch.float32, **settings: Any) -> MTP:
    """A model whose weights are all away from zero, unless moved=0."""
    model = multi_token.build_moved("mtp", SMALL | settings, moved=moved, dtype=dtype)
    assert isinstance(model, MTP)
    return model


def all_logits(model: MTP, tokens: Tensor) -> Tensor:
    """(n, B, T, V) of all heads."""
    return torch.stack([model.logits(features) for features in model.horizons(tokens)])
