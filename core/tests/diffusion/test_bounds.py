"""Bound estimators on the enumerable toy source, and with a network in the table's place."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.diffusion.bounds import (
    DiscreteCounts,
    MaskDraw,
    draw_by_count,
    draw_by_step,
    draw_in_runs,
    draw_nats,
    network_draw_sum,
    network_loss,
)
from nanozoo_core.diffusion.dit import DiT
from nanozoo_core.diffusion.sampling import WindowNoise
from nanozoo_core.diffusion.schedules import Cosine, CosineSquared, Linear
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.exact import (
    count_form,
    denoiser_loss,
    enumerate_sequences,
    exact_masked_bound,
    time_form,
)

SCHEDULES = [Linear(), Cosine(), CosineSquared()]
TABLE = denoiser_loss(toy.masked_denoiser, toy.MASK_ID)
NUM_DRAWS = 6000


def draws(seed: int) -> tuple[Tensor, WindowNoise]:
    """Sequences of the toy, and stratified noise for them."""
    generator = seeded_generator(seed)
    x = toy.sequences()[toy.joint().multinomial(NUM_DRAWS, True, generator=generator)]
    level = torch.randperm(NUM_DRAWS, generator=generator).double()
    level = (level + torch.rand(NUM_DRAWS, generator=generator, dtype=torch.float64)) / NUM_DRAWS
    uniforms = torch.rand(NUM_DRAWS, toy.LENGTH, generator=generator, dtype=torch.float64)
    return x, WindowNoise(level, uniforms)


def timed_table(targets: Tensor, masked: Tensor, time: Tensor) -> Tensor:
    """A table that depends on the time: a mixture of the exact conditionals and an even guess."""
    exact = TABLE(targets, masked, time)
    guess = 0.5 * time.clamp(0, 1)[:, None]
    mixed = -((1 - guess) * (-exact).exp() + guess / toy.VOCAB_SIZE).log()
    return torch.where(masked, mixed, 0)


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(values.numel())


def test_toy_source_has_the_stated_entropy():
    p = toy.joint()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(-(p * p.log()).sum()) == pytest.approx(toy.ENTROPY, abs=1e-9)


def test_exact_conditionals_make_the_bound_tight_for_every_sequence():
    bound = exact_masked_bound(TABLE, toy.sequences())
    assert_close(bound, -toy.joint().log(), rtol=0, atol=1e-12)


def test_integrand_runs_from_the_cloze_loss_to_the_sum_of_marginal_entropies():
    """f(0+) = sum_i H(x_i | rest), f(1) = sum_i H(x_i); neither is the entropy."""
    x, p = toy.sequences(), toy.joint()
    alone = sum(
        TABLE(x, torch.eye(3, dtype=torch.bool)[i].expand(27, 3), torch.zeros(27)).sum(1)
        for i in range(3)
    )
    assert float(p @ alone) == pytest.approx(2.151919, abs=6e-7)
    everything = TABLE(x, torch.ones(27, 3, dtype=torch.bool), torch.ones(27)).sum(1)
    assert float(p @ everything) == pytest.approx(3.112186, abs=6e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_both_estimators_agree_with_enumeration_whatever_the_schedule(schedule):
    x, noise = draws(1)
    for estimates in (
        count_form(TABLE, x, noise, schedule=schedule),
        time_form(TABLE, x, noise, schedule=schedule),
    ):
        assert abs(float(estimates.mean()) - toy.ENTROPY) < 4 * standard_error(estimates)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_estimators_agree_for_a_denoiser_that_sees_the_time(schedule):
    by_count = count_form(timed_table, *draws(2), schedule=schedule)
    by_time = time_form(timed_table, *draws(3), schedule=schedule)
    error = math.hypot(standard_error(by_count), standard_error(by_time))
    assert abs(float(by_count.mean() - by_time.mean())) < 4 * error
    assert float(by_count.mean()) > toy.ENTROPY


def test_count_form_has_the_smaller_variance():
    x, noise = draws(4)
    by_count = count_form(TABLE, x, noise, schedule=Linear())
    by_time = time_form(TABLE, x, noise, schedule=Linear())
    assert float(by_count.std()) < float(by_time.std())


@pytest.mark.parametrize(
    ("time_min", "eps", "expected"),
    [(0.1, 0.0, 2.3671), (0.0, 0.1, 2.2807), (0.0, 0.01, 2.5548), (0.0, 1e-3, 2.5827)],
)
def test_incomplete_integrals_fall_below_the_entropy(time_min, eps, expected):
    """What must never be reported: a cut interval, or a schedule that stops early."""
    nodes = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    times = time_min + (1 - time_min) * nodes
    noise = Linear(eps).noise(times)
    p, x = toy.joint(), toy.sequences()
    total = torch.zeros_like(times)
    for pattern in enumerate_sequences(2, 3).bool():
        k = int(pattern.sum())
        loss = float(p @ TABLE(x, pattern.expand(27, 3), torch.zeros(27)).sum(1))
        total += noise**k * (1 - noise) ** (3 - k) * loss / times
    value = float(total.mean()) * (1 - time_min)
    assert value == pytest.approx(expected, abs=1e-4)
    assert value < toy.ENTROPY


@pytest.mark.parametrize("num_timesteps", [1, 4, 32])
def test_bound_of_few_steps_is_estimated_by_the_law_of_counts(num_timesteps):
    """With the time known to the denoiser: within 3 standard errors of the sum over all masks."""
    x, noise = draws(8)
    keep = 1 - torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    draw = draw_by_step(noise, lambda length: DiscreteCounts(keep, length))
    estimates = draw_nats(timed_table, x, draw)
    exact = float(toy.joint() @ exact_masked_bound(timed_table, toy.sequences(), keep))
    assert abs(float(estimates.mean()) - exact) < 3 * standard_error(estimates)


@pytest.mark.parametrize("schedule", [Cosine(), CosineSquared()], ids=repr)
def test_bound_of_few_steps_follows_any_schedule(schedule):
    """Steps that drop alpha by unequal amounts, so that their weights in the law differ."""
    x, noise = draws(9)
    keep = schedule.keep(torch.arange(5, dtype=torch.float64) / 4)
    keep[-1] = 0.0
    draw = draw_by_step(noise, lambda length: DiscreteCounts(keep, length))
    estimates = draw_nats(timed_table, x, draw)
    exact = float(toy.joint() @ exact_masked_bound(timed_table, toy.sequences(), keep))
    assert abs(float(estimates.mean()) - exact) < 3 * standard_error(estimates)


@pytest.mark.parametrize("times", [(0.1, 1.0), (0.5, 1.0), (0.3, 0.8)])
def test_draw_over_a_part_of_the_times_is_that_part_of_the_integral(times):
    """Even predictions of three symbols: 3 ln 3 times the width of the part, for alpha = 1 - t."""
    time_min, time_max = times
    x, noise = draws(10)

    def even(targets: Tensor, masked: Tensor, time: Tensor) -> Tensor:
        return masked * math.log(3)

    estimates = time_form(even, x, noise, schedule=Linear(), time_min=time_min, time_max=time_max)
    expected = 3 * (time_max - time_min) * math.log(3)
    assert abs(float(estimates.mean()) - expected) < 4 * standard_error(estimates)
    assert standard_error(estimates) < 0.01 * expected


def test_unscored_tokens_are_context():
    """Scoring the last two tokens given the first is -log p(x_2, x_3 | x_1)."""
    x, noise = draws(5)
    scored = torch.tensor([False, True, True]).expand_as(x)
    estimates = count_form(TABLE, x, noise, schedule=Linear(), scored=scored)
    initial = torch.tensor(toy.INITIAL, dtype=torch.float64)
    expected = toy.ENTROPY + float((initial * initial.log()).sum())
    assert abs(float(estimates.mean()) - expected) < 4 * standard_error(estimates)
    keep = 1 - torch.arange(513, dtype=torch.float64) / 512
    draw = draw_by_step(noise, lambda length: DiscreteCounts(keep, length), scored=scored)
    stepped = draw_nats(TABLE, x, draw)
    assert expected - 4 * standard_error(stepped) < float(stepped.mean())
    assert float(stepped.mean()) < expected + 4 * standard_error(stepped) + 3 / (2 * 512)
    nothing = torch.zeros_like(scored)
    for form in (count_form, time_form):
        assert float(form(TABLE, x, noise, schedule=Linear(), scored=nothing).sum()) == 0.0


@pytest.mark.parametrize("all_scored", [True, False])
@pytest.mark.parametrize("run", [1, 3, 4, 7])
def test_draw_in_runs_is_a_draw_of_each(run, all_scored):
    """Of windows of seven, the last run being shorter: masks, times, weights and nats."""
    generator = seeded_generator(11)
    number = math.ceil(7 / run)
    level, uniforms = (
        torch.rand(30, size, generator=generator, dtype=torch.float64) for size in (number, 7)
    )
    scored = None if all_scored else torch.rand(30, 7, generator=generator) < 0.6
    draw = draw_in_runs(
        partial(draw_by_count, schedule=Cosine()), WindowNoise(level, uniforms), run, scored
    )
    losses = torch.rand(30, 7, generator=generator)
    total = torch.zeros(30)
    for n in range(number):
        part = slice(run * n, run * n + run)
        alone = draw_by_count(
            WindowNoise(level[:, n], uniforms[:, part]),
            schedule=Cosine(),
            scored=None if scored is None else scored[:, part],
        )
        assert torch.equal(draw.masked[:, part], alone.masked)
        assert torch.equal(draw.time[:, n], alone.time)
        assert torch.equal(draw.weight[:, n], alone.weight)
        assert torch.equal(draw.by_token(draw.weight)[:, part], alone.by_token(alone.weight))
        total += alone.weighted(losses[:, part] * alone.masked)
    found = draw_nats(lambda *_: losses * draw.masked, losses, draw)
    assert_close(found, total)


def test_enumeration_counts_in_order():
    assert enumerate_sequences(3, 2).tolist()[:4] == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert enumerate_sequences(2, 1).shape == (2, 1)


def test_network_loss_equals_that_of_its_full_logits():
    torch.manual_seed(0)
    net = DiT(12, 11, model_dim=16, num_layers=2, num_heads=2, seq_len=9, time_conditioning=True)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    context, targets = torch.randint(11, (4, 1)), torch.randint(11, (4, 8))
    masked, time = torch.rand(4, 8) < 0.4, torch.rand(4)

    def denoiser(corrupted: Tensor, t: Tensor) -> Tensor:
        return net(torch.cat([context, corrupted], 1), t)[:, 1:].log_softmax(-1)

    expected = denoiser_loss(denoiser, 11)(targets, masked, time)
    assert_close(network_loss(net, context, 11)(targets, masked, time), expected)
    draw = MaskDraw(masked, time.double(), torch.tensor([0.5, 0.0, 2.0, 1.0]).double())
    total = network_draw_sum(net, context, 11, targets, draw)
    assert_close(total, (expected.sum(1) * draw.weight.float()).sum())
    grads = [
        torch.autograd.grad(loss, list(net.parameters()))
        for loss in (total, draw_nats(network_loss(net, context, 11), targets, draw).sum())
    ]
    for summed, single in zip(*grads, strict=True):
        assert_close(summed, single, rtol=1e-5, atol=1e-5)


def test_network_losses_of_a_measure_add_a_penalty_on_its_mass():
    torch.manual_seed(0)
    net = DiT(12, 11, model_dim=16, num_layers=1, num_heads=2, seq_len=9)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    context, targets = torch.randint(11, (4, 1)), torch.randint(11, (4, 8))
    masked, time = torch.rand(4, 8) < 0.4, torch.rand(4)
    logits = net(torch.cat([context, targets.masked_fill(masked, 11)], 1), time)[:, 1:]
    log_mass = logits.logsumexp(-1) - math.log(11)
    penalty = masked * (log_mass.exp() - 1 - log_mass)
    tight = network_loss(net, context, 11)(targets, masked, time)
    loose = network_loss(net, context, 11, normalised=False)(targets, masked, time)
    assert_close(loose - tight, penalty, rtol=1e-4, atol=1e-5)
    draw = MaskDraw(masked, time.double(), torch.tensor([0.5, 0.0, 2.0, 1.0]).double())
    total = network_draw_sum(net, context, 11, targets, draw, normalised=False)
    assert_close(total, (loose.sum(1) * draw.weight.float()).sum())
