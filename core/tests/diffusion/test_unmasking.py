"""Samplers of masked diffusion on the enumerable source, whose conditionals they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nanozoo_core.diffusion.schedules import Cosine, CosineSquared, Linear, Schedule
from nanozoo_core.diffusion.unmasking import (
    ancestral,
    first_hitting,
    masked_window,
    most_confident,
    partial_text,
    remasking,
)
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.statistics import chi_square, chi_square_limit

MASK = toy.MASK_ID
TABLE = toy.masked_denoiser(torch.cartesian_prod(*[torch.arange(4)] * 3)).exp().nan_to_num()
Sampler = Callable[[Tensor], Iterator[Tensor]]


def table(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
    return TABLE[toy.code(x, 4)].flatten(0, 1)[rows]


def grid(num_steps: int, schedule: Schedule) -> dict[str, list[float]]:
    times = 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    return {"times": times.tolist(), "noise": schedule.noise(times).tolist()}


def by_ancestral(num_steps: int, schedule: Schedule | None = None, seed: int = 1) -> Sampler:
    steps = grid(num_steps, schedule or Linear())
    return lambda x: ancestral(table, x, mask_id=MASK, **steps, generator=seeded_generator(seed))


def by_remasking(num_steps: int, cap: float, schedule: Schedule | None = None) -> Sampler:
    steps, generator = grid(num_steps, schedule or Linear()), seeded_generator(1)
    return lambda x: remasking(table, x, mask_id=MASK, **steps, cap=cap, generator=generator)


def by_hitting(seed: int = 1) -> Sampler:
    generator = seeded_generator(seed)
    return lambda x: first_hitting(table, x, mask_id=MASK, schedule=Linear(), generator=generator)


def by_confidence(num_steps: int) -> Sampler:
    steps = grid(num_steps, Linear())
    return lambda x: most_confident(table, x, mask_id=MASK, **steps, generator=seeded_generator(1))


def masks(num_draws: int) -> Tensor:
    return torch.full((num_draws, 3), MASK)


def test_first_hitting_draws_exactly_from_the_source():
    *_, drawn = by_hitting()(masks(200_000))
    assert chi_square(toy.counts(drawn), toy.joint()) < chi_square_limit(26)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), CosineSquared()], ids=repr)
def test_ancestral_draws_from_the_source_as_steps_grow(schedule):
    *_, few = by_ancestral(4, schedule)(masks(100_000))
    *_, many = by_ancestral(256, schedule)(masks(100_000))
    assert chi_square(toy.counts(few), toy.joint()) > 2 * chi_square_limit(26)
    assert chi_square(toy.counts(many), toy.joint()) < chi_square_limit(26)


def test_one_ancestral_step_draws_the_product_of_the_marginals():
    *_, drawn = by_ancestral(1)(masks(100_000))
    symbols = torch.nn.functional.one_hot(toy.sequences(), 3).double()
    marginals = torch.einsum("n,nlv->lv", toy.joint(), symbols)
    product = marginals[torch.arange(3), toy.sequences()].prod(1)
    assert chi_square(toy.counts(drawn), product) < chi_square_limit(26)


@pytest.mark.parametrize("given", [(2, MASK, MASK), (MASK, 0, MASK), (1, MASK, 2), (0, 1, 2)])
@pytest.mark.parametrize("sampler", [by_hitting(), by_ancestral(256)], ids=["hitting", "ancestral"])
def test_known_tokens_anywhere_are_conditioned_on(given, sampler):
    """Any pattern: the law of the holes is the source's, given the rest."""
    known = torch.tensor(given)
    fits = ((toy.sequences() == known) | (known == MASK)).all(1)
    law = toy.joint() * fits
    drawn = start = known.repeat(20_000, 1)
    for drawn in sampler(start):
        assert bool(((drawn == known) | (known == MASK)).all())
    assert chi_square(toy.counts(drawn), law / law.sum()) < chi_square_limit(26)


def test_remasking_draws_from_the_source_as_steps_grow():
    """Where each step hides few again: many hidden at once are drawn side by side again, each
    without regard to the other."""
    law = toy.joint()
    *_, many = by_remasking(300, 0.01)(masks(20_000))
    assert chi_square(toy.counts(many), law) < chi_square_limit(26)
    *_, crude = by_remasking(32, 1.0)(masks(20_000))
    assert chi_square(toy.counts(crude), law) > 2 * chi_square_limit(26)


@pytest.mark.parametrize("cap", [0.2, 1.0])
def test_remasking_leaves_as_many_masks_at_every_time(cap):
    """A share of 1 - alpha, whatever is hidden again; of the holes alone, and none at the end."""
    start = masks(20_000)
    start[:, 1] = 2
    schedule = CosineSquared()
    states = list(by_remasking(6, cap, schedule)(start))
    assert len(states) == 6
    times = 1 - torch.arange(1, 7, dtype=torch.float64) / 6
    for state, noise in zip(states, schedule.noise(times).tolist(), strict=True):
        assert bool((state[:, 1] == 2).all())
        share = float((state[:, [0, 2]] == MASK).double().mean())
        assert abs(share - noise) <= 4 * (noise * (1 - noise) / 40_000) ** 0.5
    hidden = [(old != MASK) & (new == MASK) for old, new in pairwise(states)]
    assert int(hidden[2].sum()) > 1000


def test_first_hitting_lifts_one_mask_at_a_time_of_each_window():
    x = torch.tensor([[MASK, MASK, MASK], [0, MASK, 1], [0, 0, 0]])
    left = [(state == MASK).sum(1).tolist() for state in by_hitting()(x)]
    assert left == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_first_hitting_lifts_every_mask_equally_often():
    """Of three masks, and of the two that are left beside a known token."""
    for known, holes in ((MASK, [0, 1, 2]), (1, [0, 2])):
        start = masks(6000)
        start[:, 1] = known
        state = next(iter(by_hitting(4)(start)))
        counts = (state != start).sum(0)[holes]
        assert int(counts.sum()) == 6000
        law = torch.full((len(holes),), 1 / len(holes), dtype=torch.float64)
        assert chi_square(counts, law) < chi_square_limit(len(holes) - 1)


def test_first_hitting_asks_the_network_at_the_time_of_the_event():
    """With n masks the level falls to u^(1/n) of itself: on average to n / (n + 1)."""
    seen = []

    def watch(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        seen.append(Cosine().noise(time))
        return table(x, time, rows)

    generator = seeded_generator(3)
    *_, _ = first_hitting(
        watch, masks(50_000), mask_id=MASK, schedule=Cosine(), generator=generator
    )
    means = [float(level.mean()) for level in seen]
    assert means == pytest.approx([3 / 4, 1 / 2, 1 / 4], abs=0.005)


def test_skipped_steps_change_nothing():
    """The same seeds: the network runs in every step, or in those that lift a mask."""
    calls = {True: 0, False: 0}
    results = {}
    for reuse in (True, False):

        def counted(x: Tensor, time: Tensor, rows: Tensor, reuse: bool = reuse) -> Tensor:
            calls[reuse] += 1
            return table(x, time, rows)

        settings = {"mask_id": MASK, "generator": seeded_generator(5), "reuse": reuse}
        states = ancestral(counted, masks(1), **grid(50, Linear()), **settings)
        results[reuse] = [state.tolist() for state in states]
    assert results[True] == results[False]
    assert calls[True] == len(results[True]) <= 3
    assert calls[False] == 50


def test_no_mask_is_left_after_the_last_step():
    samplers = (by_hitting(), by_ancestral(7), by_confidence(2), by_confidence(40))
    for sampler in (*samplers, by_remasking(2, 1.0), by_remasking(40, 0.3)):
        *_, drawn = sampler(masks(100))
        assert int(drawn.max()) < MASK


def test_confidence_keeps_the_surest_draws_and_follows_the_schedule():
    """Deterministic conditionals per place: certain, 0.9 and 0.5; the surest goes first."""

    def fixed(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        top = torch.tensor([0.5, 1.0, 0.9], dtype=torch.float64)[rows % 3]
        return torch.stack([top, 0 * top, 1 - top], 1)

    steps = grid(3, Linear())
    states = most_confident(fixed, masks(1), mask_id=MASK, **steps, generator=seeded_generator(0))
    known = [[token != MASK for token in state[0].tolist()] for state in states]
    assert [sum(k) for k in known] == [1, 2, 3]
    assert known[0] == [False, True, False]


def test_greedy_confidence_still_tells_sure_from_unsure():
    def fixed(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        top = torch.tensor([0.6, 0.7, 0.9], dtype=torch.float64)[rows % 3]
        return torch.stack([1 - top, top], 1)

    def greedy(probs: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(probs.argmax(-1), 2).double()

    settings = {"mask_id": MASK, "generator": seeded_generator(0), "sharpen": greedy}
    states = [
        s[0].tolist() for s in most_confident(fixed, masks(1), **grid(3, Linear()), **settings)
    ]
    assert states == [[MASK, MASK, 1], [MASK, 1, 1], [1, 1, 1]]


def test_confidence_is_not_the_source():
    *_, drawn = by_confidence(3)(masks(50_000))
    assert chi_square(toy.counts(drawn), toy.joint()) > 2 * chi_square_limit(26)


def test_windows_and_partial_texts_translate():
    text = [4, None, 0]
    window = masked_window(text, 7, torch.device("cpu"))
    assert window.tolist() == [[4, 7, 0]]
    assert partial_text(window[0], 7) == text
    assert partial_text(window[0], None) == [4, 7, 0]
