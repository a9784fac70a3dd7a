"""Speculative decoding: the modules draft what the main model checks.

B rows, T positions, D model_dim, V vocabulary; depths k = 1 .. n, K drafts per pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.contract import Choose
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_mtm.model import MTM


class ChainDrafter:
    """Depth k at position i needs H^{k-1}_i and token i + k, and is true only where that token is.
    Drafts fill in for tokens that are not known yet; what was made of them is made again, from the
    true ones, in the next pass.

    Tokens and hidden states are kept at their positions, caches of modules by how many of their
    first positions are true.
    """

    def __init__(self, model: MTM) -> None:
        config = model.config
        self.model = model
        self.num_drafts = config.spec_draft_tokens
        self.num_depths = min(self.num_drafts, config.num_mtp_modules)
        self.max_context = model.max_context
        self.device = model.embedding.weight.device

    def begin(self, tokens: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        model, batch_size = self.model, len(tokens)
        # A row that is short beside the others reads as many positions as they do.
        room = max_length + self.num_drafts + self.num_depths + 2
        self.rows = torch.arange(batch_size, device=tokens.device)
        self.main = model.init_cache(batch_size, room)
        self.caches = [model.init_module_cache(batch_size, room) for _ in range(self.num_depths)]
        self.tokens = tokens.new_zeros(batch_size, room + self.num_drafts + self.num_depths)
        like = model.embedding.weight
        self.hidden = like.new_zeros(
            self.num_depths, batch_size, self.tokens.shape[1], like.shape[1]
        )  # H^0 .. H^{n-1}
        features = self._read(tokens)[self.rows, lengths - 1]
        self.main.crop(lengths)
        return model.logits(features)

    def _read(self, tokens: Tensor) -> Tensor:
        """Runs the main model and notes the tokens and H^0; returns its features (B, T, D)."""
        places = self.rows[:, None], self.main.positions(tokens.shape[1])
        stream, _ = self.model.stream(tokens, self.main)
        features = rms_norm(stream)
        self.tokens[places] = tokens
        self.hidden[0][places] = self.model.first_hidden(stream)
        return features

    def draft(self, token: Tensor, choose: Choose) -> Tensor:
        length = self.main.lengths  # (B,)
        self.tokens[self.rows, length] = token
        drafts: list[Tensor] = []

        def propose(last: Tensor) -> None:
            drafts.append(choose(self.model.logits(last)))
            self.tokens[self.rows, length + len(drafts)] = drafts[-1]

        for depth, cache in enumerate(self.caches, start=1):
            cache.crop(length - 1)
            last = self._look_ahead(depth, length)
            propose(last)
        for _ in range(self.num_drafts - self.num_depths):
            last = self._go_on(last, drafts[-1])
            propose(last)
        for depth, cache in enumerate(self.caches, start=1):
            cache.crop((length - depth + 1).clamp(min=0))
        return torch.stack(drafts, 1)

    def _look_ahead(self, depth: int, length: Tensor) -> Tensor:
        """Runs a module over the positions before `length` that it lacks. Returns: H^k (B, D) of
        the last."""
        cache = self.caches[depth - 1]
        count = length - cache.lengths
        positions = cache.positions(int(count.max()))  # (B, T)
        places = self.rows[:, None], positions
        found = self.model.look_ahead(
            depth,
            self.hidden[depth - 1][places],
            self.tokens[self.rows[:, None], positions + depth],
            rotary_angles(positions, self.model.head_dim),
            cache,
        )
        cache.advance(count)
        if depth < self.num_depths:
            self.hidden[depth][places] = found
        return found[self.rows, count - 1]

    def _go_on(self, last: Tensor, token: Tensor) -> Tensor:
        """Runs the last module at its next position, where its own output (B, D) stands in for the
        hidden state of the depth before."""
        cache = self.caches[-1]
        angles = rotary_angles(cache.positions(1), self.model.head_dim)
        found = self.model.look_ahead(self.num_depths, last[:, None], token[:, None], angles, cache)
        cache.advance(1)
        return found[:, 0]

    def check(self, tokens: Tensor) -> Tensor:
        self.lengths = self.main.lengths
        return self.model.logits(self._read(tokens))

    def keep(self, counts: Tensor) -> None:
        self.main.crop(self.lengths + counts)
