"""A bound taken apart by the level of noise, for `inspect`.

B windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanozoo_core.contract import Batch, Vocabulary
from nanozoo_core.likelihood import bits_per_byte, target_bytes

INSPECTION_SEED = 2_000_003  # noise of its own, apart from the score's
LEVELS = 4  # parts of the range of noise that are told apart
Point = tuple[float, float]


def num_scored(batch: Batch) -> Tensor:
    """Scored tokens of each window, (B,)."""
    if batch.scored is not None:
        return batch.scored.sum(1)
    window = batch.window
    return window.new_full((len(window),), window.shape[1] - 1)


def by_level(
    batches: Sequence[Batch], levels: Sequence[Tensor], nats: Sequence[Tensor]
) -> tuple[list[list[float]], list[float]]:
    """Nats per token of each term, by the part of the range of noise that a window was drawn in,
    and over all windows.

    Args: levels: of each batch (B,) in [0, 1). nats: of each batch (B, terms).
    """
    part = (torch.cat([level.cpu() for level in levels]) * LEVELS).long()
    terms = torch.cat([rows.cpu().double() for rows in nats])
    tokens = torch.cat([num_scored(batch).cpu().double() for batch in batches])
    totals = torch.zeros(LEVELS, terms.shape[1], dtype=torch.float64).index_add_(0, part, terms)
    counts = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, part, tokens)
    parts = totals / counts.clamp(min=1)[:, None]
    return parts.tolist(), (terms.sum(0) / tokens.sum()).tolist()


def level_curves(names: Sequence[str], parts: Sequence[Sequence[float]]) -> dict[str, list[Point]]:
    """A curve for each term over the middles of the parts."""
    return {
        name: [((n + 0.5) / LEVELS, row[column]) for n, row in enumerate(parts)]
        for column, name in enumerate(names)
    }


def means_by_unit(
    means: dict[str, float], batches: Sequence[Batch], vocabulary: Vocabulary
) -> dict[str, float]:
    """Nats per token under the names that say so, and bits per byte where there is text."""
    num_tokens = sum(batch.num_scored for batch in batches)
    num_bytes = sum(target_bytes(batch, vocabulary) for batch in batches)
    metrics = {f"{name}_nats_per_token": nats for name, nats in means.items()}
    if num_bytes:
        metrics |= {
            f"{name}_bits_per_byte": bits_per_byte(nats * num_tokens, num_bytes)
            for name, nats in means.items()
        }
    return metrics
