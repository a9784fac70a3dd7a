"""Self-speculative decoding: heads 2 .. n draft what head 1 checks.

B rows, K = n - 1 drafts, D model_dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.contract import Choose
from nanozoo_mtp.model import MTP


class HeadDrafter:
    """One pass over K + 1 tokens checks the drafts by head 1 and draws the next ones by the others,
    at the last token that stands. So drafts look K + 1 places ahead from one position: none sees
    another (Stern et al., arXiv 1811.03115; section 3.2 of 2404.19737)."""

    def __init__(self, model: MTP) -> None:
        self.model = model
        self.num_drafts = model.num_prediction_heads - 1
        self.max_context = model.max_context
        self.device = model.embedding.weight.device

    def begin(self, tokens: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        model = self.model
        self.cache = model.init_cache(
            len(tokens), max_length, num_prediction_heads=model.num_prediction_heads
        )
        self.rows = torch.arange(len(tokens), device=tokens.device)
        features = [found[self.rows, lengths - 1] for found in model.horizons(tokens, self.cache)]
        self.cache.crop(lengths)
        self.ahead = features[1:]  # (B, D) each
        return model.logits(features[0])

    def draft(self, token: Tensor, choose: Choose) -> Tensor:
        return torch.stack([choose(self.model.logits(found)) for found in self.ahead], 1)

    def check(self, tokens: Tensor) -> Tensor:
        self.lengths = self.cache.lengths
        first, *self.found = self.model.horizons(tokens, self.cache)  # (B, K + 1, D)
        return self.model.logits(first)

    def keep(self, counts: Tensor) -> None:
        self.cache.crop(self.lengths + counts)
        last, kept = (counts - 1).clamp(min=0), counts[:, None] > 0
        pairs = zip(self.found, self.ahead, strict=True)
        self.ahead = [torch.where(kept, new[self.rows, last], old) for new, old in pairs]
