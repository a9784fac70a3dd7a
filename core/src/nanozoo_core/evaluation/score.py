"""Bits per byte on the validation text: the one number every model is scored by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nanozoo_core.contract import Draw, Likelihood, Nll
from nanozoo_core.data.loader import ValidationSet
from nanozoo_core.errors import NonFiniteError
from nanozoo_core.likelihood import bits_per_byte
from nanozoo_core.machine.device import autocast
from nanozoo_core.machine.ranks import Ranks

NOISE_SEED = 1_000_003  # validation noise is its own, whatever the run's seed


@dataclass(frozen=True)
class Score:
    """The score of one validation pass.

    `bits_per_byte` divides nats, summed in float64, by the true UTF-8 bytes of the scored text.
    `standard_error` is that of the mean over draws of a bound; None for exact scores or one draw.
    """

    bits_per_byte: float
    bound: Likelihood
    nats_per_token: float
    num_tokens: int
    num_bytes: int
    standard_error: float | None = None
    sources: dict[str, float] = field(default_factory=dict)
    """Bits per byte of each source, where there are several."""

    def __post_init__(self) -> None:
        """Raises: NonFiniteError for a number that says nothing."""
        numbers = (self.bits_per_byte, self.nats_per_token, self.standard_error or 0.0)
        if not all(map(math.isfinite, numbers)):
            raise NonFiniteError(f"the validation score is {self.bits_per_byte} bits per byte")

    @property
    def values(self) -> dict[str, Any]:
        """The score under the names that results and metrics give it."""
        return {
            "val_bpb": self.bits_per_byte,
            "val_bound": self.bound,
            "val_standard_error": self.standard_error,
            "val_loss": self.nats_per_token,
            "val_bytes": self.num_bytes,
            "val_tokens": self.num_tokens,
        }

    def __str__(self) -> str:
        margin = f" +- {self.standard_error:.4f}" if self.standard_error else ""
        return f"{'<= ' if self.bound == 'upper' else ''}{self.bits_per_byte:.4f}{margin}"


@torch.no_grad()
def evaluate(
    loss_module: nn.Module,
    validation: ValidationSet,
    ranks: Ranks,
    *,
    likelihood: Likelihood,
    draws: int,
    batch_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[int], object] | None = None,
) -> Score:
    """Scores every window once per draw; an exact likelihood takes one draw.

    Raises: NonFiniteError when the score is not finite.

    Args:
        loss_module: called as (batch, Draw) -> Nll.
        on_progress: called with the windows just scored, `num_windows * draws` in all.
    """
    if likelihood == "exact":
        draws = 1
    batch_windows = max(1, batch_tokens // validation.seq_len)
    was_training = loss_module.training
    loss_module.eval()
    totals = torch.zeros(draws, dtype=torch.float64)
    by_source = torch.zeros(len(validation.source_bytes), dtype=torch.float64)
    tokens = torch.zeros(1, dtype=torch.float64)
    for number in range(draws):
        draw = Draw(NOISE_SEED, number)
        batches = validation.batches(batch_windows, rank=ranks.rank, world_size=ranks.world_size)
        for batch in batches:
            with autocast(device, dtype):
                nll: Nll = loss_module(batch.to(device), draw)
            totals[number] += nll.nats.sum().cpu()
            if len(by_source) > 1:
                by_source.index_add_(0, validation.sources_of(batch.rows), nll.nats.cpu() / draws)
            if number == 0:
                tokens += nll.num_tokens
            if on_progress is not None:
                on_progress(len(batch.rows))
    loss_module.train(was_training)
    totals, by_source, tokens = _sum_over_ranks([totals, by_source, tokens], ranks, device)
    num_tokens = int(tokens)
    mean, num_bytes = float(totals.mean()), validation.num_bytes
    error = None
    if draws > 1:
        error = bits_per_byte(float(totals.std()) / math.sqrt(draws), num_bytes)
    return Score(
        bits_per_byte=bits_per_byte(mean, num_bytes),
        bound=likelihood,
        nats_per_token=mean / num_tokens,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        standard_error=error,
        sources=_of_sources(by_source.tolist(), validation) if len(by_source) > 1 else {},
    )


def _of_sources(nats: list[float], validation: ValidationSet) -> dict[str, float]:
    """Bits per byte of each source, by its name."""
    found = zip(validation.source_bytes.items(), nats, strict=True)
    return {name: bits_per_byte(value, num_bytes) for (name, num_bytes), value in found}


def _sum_over_ranks(
    values: list[torch.Tensor], ranks: Ranks, device: torch.device
) -> tuple[torch.Tensor, ...]:
    if ranks.world_size == 1:
        return tuple(values)
    summed = ranks.sum(torch.cat(values).to(device)).cpu()
    return summed.split([len(value) for value in values])
