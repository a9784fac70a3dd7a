"""Small models for the tests; B batch, T sequence, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.testing import multi_token
from nanozoo_mtm.adapter import MTMAdapter, logits_by_depth
from nanozoo_mtm.config import MTMConfig
from nanozoo_mtm.model import MTM

ADAPTER = MTMAdapter(MTMConfig, MTM)
SMALL: dict[str, Any] = multi_token.SMALL | {"num_layers": 2, "num_mtp_modules": 2}


def build(*, moved: float = 0.1, dtype: torch.dtype = torch.float32, **settings: Any) -> MTM:
    """A model whose weights are all away from zero, unless moved=0."""
    model = multi_token.build_moved("mtm", SMALL | settings, moved=moved, dtype=dtype)
    assert isinstance(model, MTM)
    return model


def all_logits(model: MTM, batch: Batch) -> Tensor:
    """(1 + n, B, T, V): the main model's and each module's."""
    return torch.stack(list(logits_by_depth(model, batch)))
