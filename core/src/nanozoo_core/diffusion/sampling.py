"""Noise for a batch of windows: stratified noise levels and per-token uniforms.

Levels are stratified over the whole global batch (or validation set): of n windows exactly one
falls into each interval [j/n, (j+1)/n), and of n windows of N levels each exactly one into each
[j/nN, (j+1)/nN), of which every window has one in each [i/N, (i+1)/N). All noise of a window is
drawn from that window's own generator, so a result does not depend on how the batch is split over
ranks and micro-batches.

B windows, L scored tokens, n windows of the global batch, N levels of a window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.diffusion.schedules import Schedule


class NoiseSource(Protocol):
    """A `Step` or a `Draw`."""

    def generator(self) -> torch.Generator: ...

    def row_generator(self, row: int) -> torch.Generator: ...


@dataclass(frozen=True)
class WindowNoise:
    """Noise of B windows, float64 on the CPU."""

    level: Tensor  # (B,) in [0, 1), stratified; (B, N) where a window has several
    uniforms: Tensor  # (B, ...) in [0, 1), independent


def draw_noise(
    source: NoiseSource,
    rows: Tensor,
    num_rows: int,
    *shape: int,
    stratified: bool = True,
    num_levels: int | None = None,
) -> WindowNoise:
    """Noise of the windows numbered `rows` (B,) among `num_rows`; `shape` is that of one window's
    uniforms. Without `stratified` the levels are independent, as a control. `num_levels` N gives
    each window that many: level (B, N)."""
    count = 1 + torch.Size(shape).numel()
    generators = [source.row_generator(row) for row in rows.tolist()]
    drawn = [torch.rand(count, generator=g, dtype=torch.float64) for g in generators]
    numbers = torch.stack(drawn) if drawn else torch.empty(0, count, dtype=torch.float64)
    uniforms = numbers[:, 1:].reshape(-1, *shape)
    level = numbers[:, 0]
    if stratified:
        cells = torch.randperm(num_rows, generator=source.generator(), device="cpu")[rows]
        level = (cells + numbers[:, 0]) / num_rows
    if num_levels is None:
        return WindowNoise(level, uniforms)
    levels = torch.empty(len(rows), num_levels, dtype=torch.float64, device="cpu")
    for number, generator in enumerate(generators):
        if stratified:
            parts = torch.randperm(num_levels, generator=generator)
            levels[number] = (parts + level[number]) / num_levels
        else:
            others = torch.rand(num_levels - 1, generator=generator, dtype=torch.float64)
            levels[number] = torch.cat([level[number, None], others])
    return WindowNoise(levels, uniforms)


def copies(batch: Batch, number: int) -> Batch:
    """Every window `number` times in a row, each a window of its own among `number` times as many:
    so the draws of all are stratified together, however the batch is split."""
    if number == 1:
        return batch

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(number, dim=0)

    return replace(
        batch,
        tokens=repeated(batch.tokens),
        documents=repeated(batch.documents),
        rows=(batch.rows[:, None] * number + torch.arange(number)).flatten(),
        num_rows=batch.num_rows * number,
        scored=None if batch.scored is None else repeated(batch.scored),
    )


@dataclass(frozen=True)
class NoiseRange:
    """The part of all noise that training draws: no bound, but what is learned there can be scored
    over all of it.

    From masks for less than a tenth of the tokens little is learned, as few are predicted; from
    more than two thirds little but the frequency of tokens, as neighbours are hidden.
    Reference: arXiv 2601.22450 (the middle of the range), 2605.13026 (why it is faster).
    """

    least: float
    most: float

    def of_levels(self, noise: WindowNoise) -> WindowNoise:
        """Levels in [0, 1) moved to [least, most)."""
        return replace(noise, level=self.least + (self.most - self.least) * noise.level)

    def of_times(self, schedule: Schedule) -> tuple[float, float]:
        """The times between which the noise 1 - alpha is in this range; 0 and 1 are the ends of
        every schedule."""
        ends = torch.tensor([self.least, self.most], dtype=torch.float64, device="cpu")
        first, last = schedule.time_of_noise(ends).tolist()
        return first if self.least > 0 else 0.0, last if self.most < 1 else 1.0


def draw_window_noise(
    source: NoiseSource, batch: Batch, *, stratified: bool = True, num_levels: int | None = None
) -> WindowNoise:
    """A level for each window of a batch, or `num_levels`, and one uniform per scored token."""
    length = batch.window.shape[1] - 1
    return draw_noise(
        source, batch.rows, batch.num_rows, length, stratified=stratified, num_levels=num_levels
    )


def mask_counts(level: Tensor, num_scored: Tensor) -> Tensor:
    """k = 1 + floor(n level), uniform on 1 .. n for n scored tokens: (B,) int64; 0 where n is 0."""
    return (1 + (num_scored * level).long()).clamp(max=num_scored)


def choose_masked(uniforms: Tensor, counts: Tensor, scored: Tensor | None = None) -> Tensor:
    """The `counts` (B,) smallest of each row of `uniforms` (B, L) among the scored positions, as a
    (B, L) bool: a uniformly random set of that size."""
    if scored is not None:
        uniforms = uniforms.masked_fill(~scored.to(uniforms.device), float("inf"))
    ranks = uniforms.argsort(dim=1).argsort(dim=1)
    return ranks < counts[:, None]


def masked_times(uniforms: Tensor, counts: Tensor, scored: Tensor | None = None) -> Tensor:
    """The noise 1 - alpha that goes with a set of `choose_masked`: (B,).

    It is the k-th smallest of n uniforms, hence Beta(k, n-k+1), and independent of which positions
    they stand at: the law under which a weight 1/t turns into 1/k.
    """
    if scored is not None:
        uniforms = uniforms.masked_fill(~scored.to(uniforms.device), float("inf"))
    ordered = uniforms.sort(dim=1).values
    return ordered.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0].clamp(max=1.0)
