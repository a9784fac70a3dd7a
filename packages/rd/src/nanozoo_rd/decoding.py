"""Decoding token by token, where each row leaves the recurrence when a criterion says so.

B batch, R rows still in the recurrence, T sequence, D model_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from nanozoo_core.machine.precision import in_float64
from nanozoo_core.nn.rotary import Angles
from nanozoo_rd.cache import Decoding, DepthCache, Place


class Recurrence(Protocol):
    """The parts of a recurrent model that decoding runs; RecurrentDepth has them."""

    def angles(self, positions: Tensor) -> Angles: ...

    def read(self, tokens: Tensor, angles: Angles, cache: DepthCache | None) -> Tensor: ...

    def evaluation_state(self, positions: Tensor) -> Tensor: ...

    def step(
        self, state: Tensor, injected: Tensor, angles: Angles, place: Place | None
    ) -> Tensor: ...

    def finish(
        self, state: Tensor, angles: Angles, cache: DepthCache | None, rows: Tensor | None
    ) -> Tensor: ...

    @property
    def output_weight(self) -> Tensor: ...

    def logits(self, features: Tensor) -> Tensor: ...


@torch.no_grad()
def decode(model: Recurrence, tokens: Tensor, cache: DepthCache) -> tuple[Tensor, Tensor]:
    """Reads tokens (B, T) one position at a time -> features (B, T, D) and iterations (B, T)."""
    read = [_decode_one(model, new, cache) for new in tokens.split(1, dim=1)]
    features, depths = zip(*read, strict=True)
    return torch.cat(features, dim=1), torch.stack(depths, dim=1)


def _decode_one(model: Recurrence, tokens: Tensor, cache: DepthCache) -> tuple[Tensor, Tensor]:
    """One token of each row (B, 1) -> features (B, 1, D) and iterations (B,)."""
    decoding = cache.decoding
    positions = cache.positions(1)  # (B, 1)
    cos, sin = model.angles(positions)
    injected = model.read(tokens, (cos, sin), cache)
    state = model.evaluation_state(positions)
    rows = torch.arange(tokens.shape[0], device=tokens.device)  # still in the recurrence
    depths = torch.full_like(rows, decoding.num_iterations)
    features = torch.empty_like(state)
    has_settled = _criterion(model, decoding, state)
    for i in range(decoding.num_iterations):
        angles = cos[rows], sin[rows]
        place = Place(cache, cache.core_layer(i), rows)
        before = state[rows]
        after = model.step(before, injected[rows], angles, place)
        state[rows] = after
        if decoding.criterion == "kl":  # the last coda pass of a row is the one that stays
            features[rows] = model.finish(after, angles, cache, rows)
        if i + 1 == decoding.num_iterations:
            settled = torch.ones_like(rows, dtype=torch.bool)
        else:
            settled = has_settled(before, after, features, rows)
        if not settled.any():
            continue
        left = rows[settled]
        if decoding.criterion != "kl":
            where = cos[left], sin[left]
            features[left] = model.finish(after[settled], where, cache, left)
        cache.leave(left, i)
        depths[left] = i + 1
        rows = rows[~settled]
        if not len(rows):
            break
    cache.advance(1)
    return features, depths


def _criterion(
    model: Recurrence, decoding: Decoding, state: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """(s_{i-1}, s_i, features, rows) -> (R,) bool: whether each row is done.

    As in the published code, kl is that of the new prediction from the one before it, which at
    first is uniform.
    """
    if decoding.criterion == "latent":

        def latent(before: Tensor, after: Tensor, _: Tensor, __: Tensor) -> Tensor:
            change = (after - before).norm(dim=-1) / after.norm(dim=-1)
            return change[:, 0] < decoding.threshold

        return latent
    if decoding.criterion == "kl":
        vocab_size = model.output_weight.shape[0]
        uniform = state.new_full((state.shape[0], vocab_size), -math.log(vocab_size))
        last = in_float64(uniform)

        def kl(_: Tensor, __: Tensor, features: Tensor, rows: Tensor) -> Tensor:
            now = in_float64(model.logits(features[rows, 0])).log_softmax(-1)  # (R, V)
            places = rows.to(now.device)
            before = last[places]
            divergence = (before.exp() * (before - now)).sum(-1)  # KL(p_{i-1} || p_i)
            last[places] = now
            return (divergence < decoding.threshold).to(rows.device)

        return kl
    return lambda before, after, features, rows: torch.zeros_like(rows, dtype=torch.bool)
