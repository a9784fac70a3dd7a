"""A global batch in parts of equal size: one after another on a rank, side by side on several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.ranks import Ranks

Part = tuple[Batch, Step]


def seed_dropout(step: Step) -> None:
    """Dropout draws from the global generator: seeded by the part, a resumed run drops the same,
    and so does a second look at the same part."""
    torch.manual_seed(step.rank_generator().initial_seed())


def with_totals(
    adapter: DefaultModelAdapter,
    module: nn.Module,
    parts: Sequence[Part],
    ranks: Ranks,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Part]:
    """This rank's parts, their steps with the totals of the whole batch where the loss needs them;
    a batch in one part is its own whole. `module` is the wrapped LossModule."""
    if parts[0][1].num_parts == 1 or not adapter.has_batch_totals:
        return list(parts)
    totals: Tensor | None = None
    with torch.no_grad(), devices.autocast(device, dtype):
        for batch, step in parts:
            seed_dropout(step)
            found = module(batch, step, only_totals=True)
            if found is None:
                return list(parts)
            totals = found if totals is None else totals + found
    assert totals is not None
    whole = ranks.sum(totals)
    return [(batch, dataclasses.replace(step, totals=whole)) for batch, step in parts]
