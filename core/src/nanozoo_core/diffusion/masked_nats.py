"""How well hidden tokens are predicted by how many of them are hidden: whether a network reads the
context at all shows where one token of a window is masked.

B windows, L scored tokens, N runs of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nanozoo_core.contract import Batch, Draw
from nanozoo_core.diffusion.bounds import MaskDraw, TokenLoss, draw_in_runs
from nanozoo_core.diffusion.sampling import WindowNoise, choose_masked, draw_window_noise

NAMED_COUNTS = {1: "one", 32: "32", 128: "128"}


@torch.no_grad()
def nats_by_count(
    batches: Sequence[Batch],
    counts: Sequence[int],
    token_loss: Callable[[Batch], TokenLoss],
    time_of_noise: Callable[[Tensor], Tensor],
    *,
    run: int | None = None,
) -> dict[int, float]:
    """Mean nats of a masked token with each of `counts` of a window's tokens masked, or of every
    run of `run` tokens of it, whose times are then (B, N).

    Args: time_of_noise: from the share of masked tokens (B,) to the time that goes with it.
    """
    found = {}
    for count in counts:
        total, number = 0.0, 0
        for batch in batches:
            draw = _hidden(batch, count, time_of_noise, run)
            total += float(token_loss(batch)(batch.window[:, 1:], draw.masked, draw.time).sum())
            number += int(draw.masked.sum())
        found[count] = total / max(1, number)
    return found


def _hidden(
    batch: Batch, count: int, time_of_noise: Callable[[Tensor], Tensor], run: int | None
) -> MaskDraw:
    length = batch.window.shape[1] - 1
    size = length if run is None else run

    def hide(noise: WindowNoise, scored: Tensor | None) -> MaskDraw:
        hidden = torch.full((len(noise.uniforms),), count)
        share = hidden.double() / size
        if scored is not None:
            hidden = hidden.minimum(scored.sum(1))
        masked = choose_masked(noise.uniforms, hidden, scored)
        return MaskDraw(masked, time_of_noise(share), torch.ones_like(share))

    noise = draw_window_noise(Draw(0), batch, num_levels=math.ceil(length / size))
    draw = draw_in_runs(hide, noise, size, None if batch.scored is None else batch.scored.cpu())
    return draw if run is not None else replace(draw, time=draw.time[:, 0])


def counts_to_name(length: int) -> list[int]:
    """1, 32, 128 and all of `length` tokens, as far as there are so many."""
    return sorted({count for count in NAMED_COUNTS if count < length} | {length})


def named_nats(found: dict[int, float], length: int) -> dict[str, float]:
    """The diagnostics nats_one_masked, nats_32_masked, nats_128_masked and nats_all_masked."""
    names = NAMED_COUNTS | {length: "all"}
    return {f"nats_{names[count]}_masked": found[count] for count in counts_to_name(length)}
