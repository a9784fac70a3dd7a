"""Token sources whose true likelihood is known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.randomness import seeded_generator


class MarkovSource:
    """An order-1 Markov chain over `num_symbols` tokens, with known conditional probabilities.

    `sharpness` scales the log-odds of its random transition table: 0 is uniform.
    """

    def __init__(self, num_symbols: int, *, sharpness: float = 2.0, seed: int = 0) -> None:
        generator = seeded_generator(seed, 100)
        logits = sharpness * torch.randn(num_symbols, num_symbols, generator=generator)
        self.transitions = logits.double().softmax(-1)  # (S, S)

    def sample(self, num_windows: int, length: int, seed: int) -> Tensor:
        """(num_windows, length) tokens; the first of each is uniform."""
        generator = seeded_generator(seed, 101)
        num_symbols = self.transitions.shape[0]
        columns = [torch.randint(num_symbols, (num_windows,), generator=generator)]
        for _ in range(length - 1):
            rows = self.transitions[columns[-1]]
            columns.append(torch.multinomial(rows, 1, generator=generator)[:, 0])
        return torch.stack(columns, 1)

    def nats(self, tokens: Tensor) -> Tensor:
        """True -log p of tokens 1 .. T-1 given token 0, summed per window, float64."""
        return -self.transitions[tokens[:, :-1], tokens[:, 1:]].log().sum(1)


def batch_of(tokens: Tensor, *, lookahead: int = 1, first_row: int = 0, num_rows: int | None = None
             ) -> Batch:  # fmt: skip
    """A Batch of whole windows (B, T + lookahead)."""
    count = tokens.shape[0]
    return Batch(
        tokens=tokens,
        documents=torch.zeros_like(tokens, dtype=torch.int32),
        rows=torch.arange(first_row, first_row + count),
        num_rows=count if num_rows is None else num_rows,
        lookahead=lookahead,
    )


def short_documents(tokens: Tensor, *, lookahead: int = 1) -> Batch:
    """The same windows, a new document beginning after every 1 to 6 tokens: in the first windows
    more often than in the last."""
    generator = seeded_generator(0, 102)
    lengths = 1 + torch.arange(len(tokens)) * 6 // len(tokens)  # (B,)
    begins = torch.rand(tokens.shape, generator=generator) * lengths[:, None] < 1
    documents = (begins.cumsum(1) - begins[:, :1].long()).to(torch.int32)
    return replace(batch_of(tokens, lookahead=lookahead), documents=documents)
