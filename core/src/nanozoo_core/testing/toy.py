"""A source of sequences small enough to enumerate, with everything about it known exactly.

V = 3 symbols, L = 3 positions, a Markov chain; all of it in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.contract import Batch
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.sources import batch_of

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
    is_symbol = F.one_hot(x, VOCAB_SIZE).double()  # (27, 3, V)
    mass = torch.einsum("bn,nlv->blv", weights, is_symbol)
    return (mass / mass.sum(-1, keepdim=True)).log()


def code(windows: Tensor, base: int = VOCAB_SIZE) -> Tensor:
    """The number of each row of (..., 3) among all sequences of `base` ids."""
    return (windows * torch.tensor([base * base, base, 1])).sum(-1)


def counts(windows: Tensor) -> Tensor:
    """How often each sequence of `sequences` stands among the rows of (B, 3), (27,)."""
    return torch.bincount(code(windows), minlength=VOCAB_SIZE**LENGTH).double()


def batch(num_windows: int, seed: int = 1) -> Batch:
    """Sequences of the source behind a context token that says nothing of them."""
    picks = joint().multinomial(num_windows, replacement=True, generator=seeded_generator(seed))
    context = torch.zeros(num_windows, 1, dtype=torch.int64)
    return batch_of(torch.cat([context, sequences()[picks]], dim=1))


class TableNetwork(nn.Module):
    """Stands in for a model's network: its features are what a table says, its head nothing.

    Args: table: (windows (B, 3), time (B,)) -> (B, 3, V), logits.
    """

    def __init__(self, table: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = table
        self.output_weight = torch.eye(VOCAB_SIZE, dtype=torch.float64)
        self.output_bias = torch.zeros(VOCAB_SIZE, dtype=torch.float64)

    def features(self, tokens: Tensor, time: Tensor) -> Tensor:
        """(B, 4, V) for a context token and three of the toy."""
        return F.pad(self.table(tokens[:, 1:], time), (0, 0, 1, 0))

    def logits(self, features: Tensor) -> Tensor:
        return features
