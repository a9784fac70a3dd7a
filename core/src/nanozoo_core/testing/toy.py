"""A source of sequences small enough to enumerate, with everything about it known exactly.

V = 3 symbols, L = 3 positions, a Markov chain; all of it in float64.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

VOCAB_SIZE = 3
LENGTH = 3
MASK_ID = VOCAB_SIZE
ENTROPY = 2.585836129  # nats per sequence
INITIAL = (1 / 2, 1 / 3, 1 / 6)
TRANSITION = ((0.8, 0.1, 0.1), (0.2, 0.6, 0.2), (0.1, 0.3, 0.6))


@cache
def sequences() -> Tensor:
    """All 27 sequences, (27, 3) int64."""
    return torch.tensor(list(itertools.product(range(VOCAB_SIZE), repeat=LENGTH)))


@cache
def joint() -> Tensor:
    """p of every sequence, (27,) in the order of `sequences`."""
    initial = torch.tensor(INITIAL, dtype=torch.float64)
    step = torch.tensor(TRANSITION, dtype=torch.float64)
    x = sequences()
    return initial[x[:, 0]] * step[x[:, 0], x[:, 1]] * step[x[:, 1], x[:, 2]]


def masked_denoiser(corrupted: Tensor, time: Tensor | None = None) -> Tensor:
    """log p(x_i | unmasked tokens): (B, 3) with MASK_ID -> (B, 3, V). The exact conditionals."""
    x = sequences()
    visible = (corrupted[:, None] == x) | (corrupted[:, None] == MASK_ID)  # (B, 27, 3)
    weights = joint() * visible.all(-1)  # (B, 27)
    is_symbol = torch.nn.functional.one_hot(x, VOCAB_SIZE).double()  # (27, 3, V)
    mass = torch.einsum("bn,nlv->blv", weights, is_symbol)
    return (mass / mass.sum(-1, keepdim=True)).log()
