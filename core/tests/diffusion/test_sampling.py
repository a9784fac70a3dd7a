"""Noise of windows: strata, splits of the batch, masks and their times."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from nanozoo_core.contract import Draw, Step
from nanozoo_core.diffusion.sampling import (
    NoiseRange,
    choose_masked,
    copies,
    draw_noise,
    mask_counts,
    masked_times,
)
from nanozoo_core.diffusion.schedules import Cosine, CosineSquared, Geometric, Linear
from nanozoo_core.ops.categorical import draw_categorical
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.sources import batch_of

SOURCES = [Step(number=3, progress=0.1, seed=7), Draw(seed=7, number=1)]


@pytest.mark.parametrize("source", SOURCES, ids=["step", "draw"])
def test_every_cell_of_the_global_batch_holds_one_level(source):
    noise = draw_noise(source, torch.arange(40), 40, 3)
    assert (noise.level * 40).long().sort().values.tolist() == list(range(40))


def test_levels_cover_the_batch_however_it_is_split():
    """world=2, accumulation=2: the four parts together are the whole, number for number."""
    step = Step(number=5, progress=0.0, seed=1)
    whole = draw_noise(step, torch.arange(16), 16, 8)
    parts = []
    for micro_step in range(2):
        for rank in range(2):
            first = (micro_step * 2 + rank) * 4
            part = Step(5, 0.0, 1, rank=rank, world_size=2, micro_step=micro_step)
            parts.append(draw_noise(part, torch.arange(first, first + 4), 16, 8))
    assert torch.equal(torch.cat([p.level for p in parts]), whole.level)
    assert torch.equal(torch.cat([p.uniforms for p in parts]), whole.uniforms)


def test_levels_without_strata_are_independent():
    """The same uniforms for the masks, but cells that hold none, or several."""
    step = Step(number=2, progress=0.0, seed=3)
    strata = draw_noise(step, torch.arange(64), 64, 4)
    loose = draw_noise(step, torch.arange(64), 64, 4, stratified=False)
    assert torch.equal(strata.uniforms, loose.uniforms)
    filled = len(set((loose.level * 64).long().tolist()))
    assert filled < 64 == len(set((strata.level * 64).long().tolist()))


def test_levels_of_a_window_are_one_in_each_part():
    """Of 12 windows with 5 levels: one in each 60th, and in each window one in each fifth, in an
    order of its own; the uniforms are those of a single level, which is the window's own."""
    step = Step(number=2, progress=0.0, seed=3)
    noise = draw_noise(step, torch.arange(12), 12, 4, num_levels=5)
    assert (noise.level * 60).long().flatten().sort().values.tolist() == list(range(60))
    fifths = (noise.level * 5).long()
    assert bool((fifths.sort(1).values == torch.arange(5)).all())
    assert len(fifths.unique(dim=0)) > 8
    part = draw_noise(step, torch.tensor([7, 3]), 12, 4, num_levels=5)
    assert torch.equal(part.level, noise.level[[7, 3]])
    single = draw_noise(step, torch.arange(12), 12, 4)
    assert torch.equal(noise.uniforms, single.uniforms)
    one = draw_noise(step, torch.arange(12), 12, 4, num_levels=1)
    assert torch.equal(one.level[:, 0], single.level)


def test_levels_of_a_window_without_strata_are_independent():
    step = Step(number=2, progress=0.0, seed=3)
    noise = draw_noise(step, torch.arange(200), 200, 4, stratified=False, num_levels=5)
    assert noise.level.shape == (200, 5)
    assert noise.level.unique().numel() == 1000
    assert abs(float(noise.level.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 1000)
    shares = torch.corrcoef(noise.level.T)
    assert float(shares.triu(1).abs().max()) < 4 / math.sqrt(200)
    single = draw_noise(step, torch.arange(200), 200, 4, stratified=False)
    assert torch.equal(noise.level[:, 0], single.level)


def test_steps_and_windows_get_noise_of_their_own():
    first = draw_noise(Step(0, 0.0, 0), torch.arange(4), 4, 6)
    second = draw_noise(Step(1, 0.0, 0), torch.arange(4), 4, 6)
    assert first.uniforms.flatten().unique().numel() == 24
    assert not bool((first.uniforms == second.uniforms).any())


def test_noise_takes_the_shape_asked_for():
    assert draw_noise(Draw(0), torch.tensor([2, 0]), 3, 5, 2).uniforms.shape == (2, 5, 2)
    assert draw_noise(Draw(0), torch.empty(0, dtype=torch.int64), 3, 5).uniforms.shape == (0, 5)


def test_counts_are_uniform_from_one_to_all():
    level = (torch.arange(60) + 0.5).double() / 60
    counts = mask_counts(level, torch.full((60,), 12))
    assert torch.bincount(counts).tolist() == [0] + [5] * 12
    assert mask_counts(level[:1], torch.tensor([0])).tolist() == [0]


def test_masks_have_their_size_and_spare_what_is_not_scored():
    uniforms = torch.rand(30, 9, generator=seeded_generator(1), dtype=torch.float64)
    scored = torch.rand(30, 9, generator=seeded_generator(2)) < 0.7
    counts = mask_counts(uniforms[:, 0], scored.sum(1))
    masked = choose_masked(uniforms, counts, scored)
    assert torch.equal(masked.sum(1), counts)
    assert not bool((masked & ~scored).any())


def test_mask_sets_are_equally_likely():
    uniforms = torch.rand(24_000, 4, generator=seeded_generator(3), dtype=torch.float64)
    masked = choose_masked(uniforms, torch.full((24_000,), 2))
    codes = (masked.long() * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = torch.bincount(codes)[torch.tensor([3, 5, 6, 9, 10, 12])].double()
    assert int(counts.sum()) == 24_000
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 25.7  # chi-square, 5 degrees, 1e-4


def test_time_of_a_mask_set_is_beta_distributed_and_independent_of_the_set():
    uniforms = torch.rand(40_000, 5, generator=seeded_generator(4), dtype=torch.float64)
    counts = torch.full((40_000,), 2)
    time = masked_times(uniforms, counts)
    mean, variance = 2 / 6, 2 * 4 / (6**2 * 7)  # Beta(2, 4)
    error = math.sqrt(variance / 40_000)
    assert abs(float(time.mean()) - mean) < 4 * error
    first = choose_masked(uniforms, counts)[:, 0]
    assert abs(float(time[first].mean()) - mean) < 4 * error / math.sqrt(0.4)


def test_draws_follow_the_weights_and_never_take_a_zero():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    uniforms = torch.cat([torch.arange(8).double() / 8, torch.tensor([1 - 2.0**-53])])
    drawn = draw_categorical(weights.expand(9, -1), uniforms.double())
    assert drawn.tolist() == [1] * 6 + [3] * 3


def test_draws_reach_categories_that_float32_cannot_separate():
    """A tail of 1e-9 lies below the spacing of float32 next to 1."""
    weights = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    uniforms = torch.tensor([1 - 5e-10, 1 - 5e-9], dtype=torch.float64)
    assert draw_categorical(weights.expand(2, -1), uniforms).tolist() == [1, 0]


def test_draw_is_the_quantile_function():
    weights = torch.rand(50, 7, generator=seeded_generator(5), dtype=torch.float64)
    uniforms = torch.rand(50, generator=seeded_generator(6), dtype=torch.float64)
    drawn = draw_categorical(weights, uniforms)
    cumulative = weights.cumsum(1) / weights.sum(1, keepdim=True)
    above = cumulative.gather(1, drawn[:, None])[:, 0]
    below = above - (weights / weights.sum(1, keepdim=True)).gather(1, drawn[:, None])[:, 0]
    assert bool((below - 1e-12 <= uniforms).all())
    assert bool((uniforms < above + 1e-12).all())
    assert_close(drawn, drawn.clamp(0, 6))


def test_copies_of_windows_are_windows_of_their_own_however_the_batch_is_split():
    tokens = torch.arange(24).view(6, 4)
    scored = torch.arange(18).view(6, 3) % 2 == 0
    whole = dataclasses.replace(batch_of(tokens), scored=scored)
    twice = copies(whole, 2)
    assert torch.equal(twice.tokens[::2], tokens)
    assert torch.equal(twice.tokens[1::2], tokens)
    assert torch.equal(twice.scored[1::2], scored)
    assert twice.rows.tolist() == list(range(12))
    assert twice.num_rows == 12
    part = copies(whole.take(slice(2, 4)), 2)
    assert part.rows.tolist() == [4, 5, 6, 7]
    assert part.num_rows == 12
    assert copies(whole, 1) is whole


def test_levels_of_a_range_are_spread_evenly_over_it():
    noise = draw_noise(Draw(0), torch.arange(50), 50, 3)
    part = NoiseRange(0.1, 0.6).of_levels(noise)
    assert ((part.level - 0.1) / 0.5 * 50).long().sort().values.tolist() == list(range(50))
    assert torch.equal(part.uniforms, noise.uniforms)
    assert torch.equal(NoiseRange(0.0, 1.0).of_levels(noise).level, noise.level)


@pytest.mark.parametrize(
    "schedule", [Linear(), Linear(1e-3), Cosine(), CosineSquared(), Geometric()], ids=str
)
def test_times_of_a_range_have_its_noise(schedule):
    first, last = NoiseRange(0.1, 0.6).of_times(schedule)
    ends = schedule.noise(torch.tensor([first, last], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0.1, 0.6])
    assert NoiseRange(0.0, 1.0).of_times(schedule) == (0.0, 1.0)
