"""Speculative decoding with a second model: a small one proposes what a larger one checks.

B rows, T tokens of a prompt, K drafts, V vocabulary.

Reference: Leviathan et al., arXiv 2211.17192, section 2.3; Chen et al., arXiv 2302.01318.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Choose
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import NanozooError


class ModelDrafter:
    """A model whose tokens another one of the same vocabulary proposes. Both read the same text:
    the small one token by token, the large one all drafts of a pass at once.

    The small one has read all but the last of the tokens that stand, and reads that one with the
    first of a pass: it costs no call of its own, and the last draft is read only where it stands.
    """

    def __init__(
        self,
        adapter: DefaultModelAdapter,
        model: nn.Module,
        small_adapter: DefaultModelAdapter,
        small_model: nn.Module,
        *,
        num_drafts: int,
    ) -> None:
        """Both models on one device, each with a cache that `takes_back` the drafts of a pass."""
        self.adapter, self.model = adapter, model
        self.small_adapter, self.small_model = small_adapter, small_model
        self.num_drafts = num_drafts
        self.max_context: int | None = getattr(model, "max_context", None)
        self.device = next(model.parameters()).device

    def begin(self, tokens: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        batch_size = len(tokens)
        max_length = min(max_length, self.max_context or max_length)
        self.cache = self.adapter.init_cache(self.model, batch_size, max_length)
        self.small_cache = self.small_adapter.init_cache(self.small_model, batch_size, max_length)
        self.small_adapter.prefill(self.small_model, tokens, lengths, self.small_cache)
        self.small_cache.crop(lengths - 1)
        self.lengths = lengths
        self.last = tokens.gather(1, lengths[:, None] - 1)[:, 0]  # (B,)
        return self.adapter.prefill(self.model, tokens, lengths, self.cache)

    def draft(self, token: Tensor, choose: Choose) -> Tensor:
        count = self.num_drafts
        if self.max_context is not None:  # a table of positions ends there
            count = max(0, min(count, self.max_context - 1 - int(self.lengths.max())))
        drafts: list[Tensor] = []
        new = torch.stack([self.last, token], 1)  # (B, 2)
        for _ in range(count):
            logits = self.small_adapter.append(self.small_model, new, self.small_cache)
            drafts.append(choose(logits[:, -1]))
            new = drafts[-1][:, None]
        return torch.stack(drafts, 1) if drafts else token.new_empty(len(token), 0)

    def check(self, tokens: Tensor) -> Tensor:
        self.checked = tokens  # (B, K + 1)
        return self.adapter.append(self.model, tokens, self.cache)

    def keep(self, counts: Tensor) -> None:
        self.lengths = self.lengths + counts
        kept = self.checked.gather(1, (counts[:, None] - 1).clamp(min=0))[:, 0]
        self.last = torch.where(counts > 0, kept, self.last)
        if self.max_context is not None:  # a complete row reads one token once more, for nothing
            self.lengths = self.lengths.clamp(max=self.max_context - 1)
        self.cache.crop(self.lengths)
        self.small_cache.crop(self.lengths - 1)


@torch.no_grad()
def takes_back(adapter: DefaultModelAdapter, model: nn.Module, count: int) -> bool:
    """Whether a model's cache can forget the last `count` tokens again. Recurrent states cannot,
    and rolling caches a few."""
    if not adapter.has_cache(model):
        return False
    longest = getattr(model, "max_context", None)
    count = count if longest is None else min(count, longest - 1)
    tokens = torch.zeros(1, count, dtype=torch.int64, device=next(model.parameters()).device)
    one = torch.ones(1, dtype=torch.int64, device=tokens.device)
    cache = adapter.init_cache(model, 1, count + 1)
    adapter.prefill(model, tokens[:, :1], one, cache)
    adapter.append(model, tokens, cache)
    try:
        cache.crop(one)
    except (NanozooError, ValueError):
        return False
    return True
