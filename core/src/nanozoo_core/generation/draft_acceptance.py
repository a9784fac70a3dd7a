"""How many of a model's drafts stand, and the tokens that a pass then gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Inspection, SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.speculative import Tally, decode
from nanozoo_core.randomness import seeded_generator

WAYS = {"greedy": SamplingSettings(temperature=0), "sampled": SamplingSettings(temperature=1)}
NUM_PROMPTS = 16
NUM_TOKENS = 64


def inspect_drafts(
    adapter: DefaultModelAdapter, model: nn.Module, batches: Sequence[Batch]
) -> Inspection:
    """Acceptance and tokens per pass of greedy and of sampled text after the first halves of some
    windows; nothing for a model that proposes nothing."""
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
