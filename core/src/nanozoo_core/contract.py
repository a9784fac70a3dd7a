"""The types that pass between the trainer, the data and a model.

Shapes: B windows in a batch, T scored positions per window (`data.seq_len`), A lookahead (>= 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from nanozoo_core.randomness import seeded_generator

Likelihood = Literal["exact", "upper"]

PartialText = Sequence[int | None]
"""Tokens of a text, None where one is not known yet."""


class Vocabulary(Protocol):
    """What a model and the metric need to know of a tokenizer."""

    name: str
    size: int  # ids are 0 .. size-1
    separator: int  # starts every document, and is the empty prompt

    @property
    def token_bytes(self) -> Tensor:
        """(size,) int64: UTF-8 bytes of each token, 0 for special ones."""
        ...

    def encode(self, text: str | bytes) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text for display: invalid UTF-8 is replaced, special tokens vanish."""
        ...

    def decode_bytes(self, tokens: Sequence[int]) -> bytes: ...


@dataclass(frozen=True)
class Batch:
    """Some windows of the token stream.

    `tokens[:, 0]` is context and never scored; position t of the window predicts `tokens[:, t+1]`.
    """

    tokens: Tensor  # (B, T + A) int64
    documents: Tensor  # (B, T + A) int32: document number within the window, from 0
    rows: Tensor  # (B,) int64 on CPU: each window's index in the global batch or validation set
    num_rows: int  # windows in the whole global batch, or the whole validation set
    lookahead: int = 1  # A
    scored: Tensor | None = None  # (B, T) bool: which targets count; None means all of them

    @property
    def inputs(self) -> Tensor:
        """(B, T): tokens 0 .. T-1 of each window."""
        return self.tokens[:, : self.tokens.shape[1] - self.lookahead]

    @property
    def targets(self) -> Tensor:
        """(B, T): the token after each input."""
        return self.tokens[:, 1 : self.tokens.shape[1] - self.lookahead + 1]

    @property
    def window(self) -> Tensor:
        """(B, T + 1): the context token and the T scored ones."""
        return self.tokens[:, : self.tokens.shape[1] - self.lookahead + 1]

    def ahead(self, distance: int, *, across_documents: bool = False) -> tuple[Tensor, Tensor]:
        """The token `distance` >= 1 places after each input, (B, T), and where it counts, (B, T)
        bool: it lies in the window, the input's own target is scored and, unless
        `across_documents`, no document begins behind the input. Where it does not count, the token
        has no meaning."""
        length = self.tokens.shape[1] - self.lookahead
        missing = min(length, max(0, length + distance - self.tokens.shape[1]))

        def shifted(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x[:, distance : distance + length], (0, missing))

        places = torch.arange(length, device=self.tokens.device)
        counts = (places < length - missing).expand(self.tokens.shape[0], length)
        if not across_documents:
            counts = counts & (shifted(self.documents) == self.documents[:, :length])
        if self.scored is not None:
            counts = counts & self.scored
        return shifted(self.tokens), counts

    @property
    def num_scored(self) -> int:
        """How many tokens of this batch count towards the loss or the score."""
        if self.scored is not None:
            return int(self.scored.sum())
        return self.tokens.shape[0] * (self.tokens.shape[1] - self.lookahead)

    def take(self, rows: slice) -> Batch:
        """Some of the windows, which keep their place in the global batch."""
        return replace(
            self,
            tokens=self.tokens[rows],
            documents=self.documents[rows],
            rows=self.rows[rows],
            scored=None if self.scored is None else self.scored[rows],
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device` (`rows` stays on the CPU)."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        scored = None if self.scored is None else move(self.scored)
        return Batch(
            tokens=move(self.tokens),
            documents=move(self.documents),
            rows=self.rows,
            num_rows=self.num_rows,
            lookahead=self.lookahead,
            scored=scored,
        )


@dataclass(frozen=True)
class Step:
    """Where training stands, and the only randomness that a loss may use.

    `number` counts optimiser steps from 0 and `progress` runs from 0 to 1 over the budget.
    """

    number: int
    progress: float
    seed: int
    rank: int = 0
    world_size: int = 1
    micro_step: int = 0
    num_micro_steps: int = 1
    totals: Tensor | None = None
    """The adapter's `batch_totals`, summed over the global batch; None where this batch is it."""

    @property
    def num_parts(self) -> int:
        """Into how many batches of equal size the global batch is split."""
        return self.world_size * self.num_micro_steps

    def generator(self) -> torch.Generator:
        """A fresh CPU generator, the same on every rank and micro-step of this step."""
        return seeded_generator(self.seed, 0, self.number)

    def rank_generator(self) -> torch.Generator:
        """A fresh CPU generator of this rank and micro-step alone."""
        return seeded_generator(self.seed, 1, self.number, self.micro_step, self.rank)

    def row_generator(self, row: int) -> torch.Generator:
        """A fresh CPU generator of one window of the global batch: noise drawn from it is the same
        however the batch is split over ranks and micro-steps."""
        return seeded_generator(self.seed, 2, self.number, row)


@dataclass(frozen=True)
class Draw:
    """Which random draw of a likelihood bound to take: validation asks for draws 0, 1, ... with the
    same seed each time, so that successive checkpoints see the same noise."""

    seed: int
    number: int = 0

    def generator(self) -> torch.Generator:
        """A fresh CPU generator, the same for every batch of this draw (for strata)."""
        return seeded_generator(self.seed, 3, self.number)

    def row_generator(self, row: int) -> torch.Generator:
        """A fresh CPU generator of one validation window in this draw."""
        return seeded_generator(self.seed, 4, self.number, row)


@dataclass(frozen=True)
class Loss:
    """What `training_loss` returns: `value` is differentiated, `metrics` are only logged.

    The mean of `value` over the parts of a split batch must be its value on the whole batch;
    metrics are averaged over the parts.
    """

    value: Tensor  # scalar: mean nats per scored token, plus whatever else is optimised
    metrics: dict[str, Tensor] = field(default_factory=dict)  # detached scalars


@dataclass(frozen=True)
class Nll:
    """What `nll` returns: the negative log-likelihood of each window, or an upper bound on it."""

    nats: Tensor  # (B,) float64: summed over the scored tokens of each window
    num_tokens: int  # scored tokens in the batch


@dataclass(frozen=True)
class Curves:
    """Some lines over one axis: shown as a plot, printed as a table."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float]]]  # name to points (x, y)


@dataclass(frozen=True)
class HeatMap:
    """A matrix of numbers: rows by columns."""

    title: str
    row_label: str
    column_label: str
    values: list[list[float]]


@dataclass(frozen=True)
class Inspection:
    """What is peculiar to a trained model: numbers for its result, and pictures."""

    metrics: dict[str, float]
    pictures: tuple[Curves | HeatMap, ...] = ()


@dataclass(frozen=True)
class GGUFModel:
    """A model as a file of llama.cpp describes it."""

    architecture: str
    settings: dict[str, int | float | bool]
    """By key, without the architecture that stands before it there, as `block_count`."""
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class DataStage:
    """From `progress` of the run on, a step reads `batch_tokens` scored tokens in windows of
    `seq_len`."""

    progress: float
    batch_tokens: int
    seq_len: int


@dataclass(frozen=True)
class DataPlan:
    """How a model wants its training data: stages by rising progress, the first at 0."""

    stages: tuple[DataStage, ...]


@dataclass(frozen=True)
class SamplingSettings:
    """How text is drawn. `temperature=0` is greedy; `top_k=0` and `top_p=1` switch the cuts off."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_steps: int | None = None  # denoising steps or iterations; None: the config's own
    use_cache: bool = True  # False recomputes everything for every token: slow, for checks
    on_step: Callable[[PartialText], object] | None = None
    """Called by models that denoise with the whole text after every step, for `--trace`."""


Choose = Callable[[Tensor], Tensor]  # tokens (B,) from logits (B, V)


class Drafter(Protocol):
    """A model that can propose, and the state of the rows that it is decoding.

    Each row has tokens that the model has read, and after them one that it has not: chosen, but not
    yet seen by any cache. A pass drafts behind that token, checks it and the drafts, and keeps as
    many of them as were right.
    """

    num_drafts: int  # K >= 1
    max_context: int | None  # the longest text worth reading
    device: torch.device

    def begin(self, tokens: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        """Forgets all rows and reads right-padded prompts (B, T) with `lengths` (B,), which may
        grow to `max_length`. Returns: the model's logits (B, V) after each."""
        ...

    def draft(self, token: Tensor, choose: Choose) -> Tensor:
        """Proposes (B, K) tokens to follow the unread `token` (B,), each by one call of `choose`
        on the logits that it comes from, in order; fewer where no more fit the context. No other
        draft may depend on one but through its token."""
        ...

    def check(self, tokens: Tensor) -> Tensor:
        """Reads the unread token and the drafts, (B, K + 1) or fewer. Returns: the model's logits
        after each, (B, K + 1, V)."""
        ...

    def keep(self, counts: Tensor) -> None:
        """Of the tokens just checked only the first `counts` (B,), 0 .. K + 1, are true: the state
        becomes what reading those alone would have made it."""
        ...
