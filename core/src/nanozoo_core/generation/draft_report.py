"""What a model's drafts are worth: acceptance, tokens per pass, and the time they save."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Inspection, SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.autoregressive import autoregressive
from nanozoo_core.generation.speculative import Tally, decode, speculative
from nanozoo_core.machine.device import synchronize
from nanozoo_core.randomness import seeded_generator

WAYS = {"greedy": SamplingSettings(temperature=0), "sampled": SamplingSettings(temperature=1)}
NUM_PROMPTS = 16
NUM_TOKENS = 64
NUM_ROUNDS = 3


def inspect_drafts(
    adapter: DefaultModelAdapter, model: nn.Module, batches: Sequence[Batch]
) -> Inspection:
    """Acceptance and tokens per pass of greedy and of sampled text after the first halves of some
    windows, and the speed-up of greedy text; nothing for a model that proposes nothing."""
    drafter = adapter.drafter(model)
    prompts = first_halves(batches)
    if drafter is None or not len(prompts):
        return Inspection({})
    metrics: dict[str, float] = {}
    series: dict[str, list[tuple[float, float]]] = {}
    for name, settings in WAYS.items():
        tally = measure(adapter, model, prompts, settings, max_tokens=NUM_TOKENS)
        metrics[f"acceptance_{name}"] = tally.acceptance
        metrics[f"tokens_per_pass_{name}"] = tally.tokens_per_pass
        shares = tally.acceptance_by_place
        series[name] = [(float(place), share) for place, share in enumerate(shares, start=1)]
    greedy = replace(WAYS["greedy"], max_tokens=NUM_TOKENS)
    ratios = race(adapter, model, prompts[0].tolist(), greedy, rounds=NUM_ROUNDS)
    metrics["speculative_speedup"] = statistics.median(ratios)
    picture = Curves("Drafts accepted, given those before", "place", "share", series)
    return Inspection(metrics, (picture,))


def first_halves(batches: Sequence[Batch], count: int = NUM_PROMPTS) -> Tensor:
    """(B, T / 2): the beginnings of the first `count` windows."""
    rows = torch.cat([batch.inputs for batch in batches])[:count]
    return rows[:, : rows.shape[1] // 2]


def measure(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompts: Tensor,
    settings: SamplingSettings,
    *,
    max_tokens: int,
) -> Tally:
    """Decodes up to `max_tokens` behind each of some prompts (B, T), as far as the context goes."""
    drafter = adapter.drafter(model)
    assert drafter is not None
    batch_size, length = prompts.shape
    if drafter.max_context is not None:
        max_tokens = min(max_tokens, drafter.max_context + 1 - length)
    lengths = torch.full((batch_size,), length, device=prompts.device)
    tally = Tally()
    generator = seeded_generator(settings.seed, 6)
    for _ in decode(
        drafter, prompts, lengths, settings, generator, max_tokens=max_tokens, tally=tally
    ):
        pass
    return tally


def race(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    settings: SamplingSettings,
    *,
    rounds: int,
) -> list[float]:
    """Time of plain decoding over that of speculative decoding of the same length, round by round.

    The two alternate in one process, after one of each that does not count, and take turns at being
    first. Seconds are the process's own on a CPU, and the clock's on a GPU.
    """
    device = next(model.parameters()).device

    def plain() -> None:
        generator = seeded_generator(settings.seed, 7)
        for _ in autoregressive(adapter, model, prompt, settings, generator):
            pass

    def drafted() -> None:
        drafter = adapter.drafter(model)
        assert drafter is not None
        generator = seeded_generator(settings.seed, 7)
        for _ in speculative(drafter, prompt, settings, generator):
            pass

    ratios = []
    for number in range(rounds + 1):
        order = [plain, drafted] if number % 2 else [drafted, plain]
        seconds = {task: _seconds(task, device) for task in order}
        ratios.append(seconds[plain] / seconds[drafted])
    return ratios[1:]


def _seconds(task: Callable[[], None], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    started = clock()
    task()
    synchronize(device)
    return clock() - started
