"""Drawing text from a model, by the decoder that fits it: after a prompt, or in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from nanozoo_core.contract import Drafter, SamplingSettings, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter, DenoisingModel
from nanozoo_core.errors import ConfigError, Problems
from nanozoo_core.generation.autoregressive import autoregressive, autoregressive_rows
from nanozoo_core.generation.denoising import continue_text, denoised, fit_window
from nanozoo_core.generation.speculative import Tally, speculative
from nanozoo_core.randomness import seeded_generator


def check_settings(settings: SamplingSettings) -> None:
    """Raises: ConfigError for settings out of range, all at once."""
    p = Problems()
    p.require(settings.max_tokens >= 1, f"max_tokens={settings.max_tokens} must be at least 1")
    p.require(settings.temperature >= 0, f"temperature={settings.temperature} must not be negative")
    p.require(settings.top_k >= 0, f"top_k={settings.top_k} must be at least 0 (0 switches it off)")
    p.require(0 < settings.top_p <= 1, f"top_p={settings.top_p} must be in (0, 1]")
    p.require(
        settings.num_steps is None or settings.num_steps >= 1,
        f"num_steps={settings.num_steps} must be at least 1",
    )
    p.raise_if_any()


def draw_text(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """Yields newly drawn tokens, one or several at a time, after a prompt of >= 1 token: with the
    cache, or window by window from a model that denoises."""
    decoder = continue_text if adapter.can_denoise else autoregressive
    with adapter.at_steps(model, settings.num_steps):
        yield from decoder(adapter, model, prompt, settings, generator)


def generate_tokens(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    settings: SamplingSettings,
    *,
    drafter: Drafter | None = None,
    tally: Tally | None = None,
) -> Iterator[list[int]]:
    """Yields new tokens after `prompt` until a separator or `settings.max_tokens`.

    Documents start with a separator, so every prompt does; an empty one is the separator alone.
    With a `drafter`, of this model, decoding is speculative; what the drafts were worth is counted
    in the `tally`.
    """
    check_settings(settings)
    generator = seeded_generator(settings.seed, 5)
    tokens = [vocabulary.separator, *vocabulary.encode(prompt)]
    was_training = model.training
    model.eval()
    try:
        left = settings.max_tokens
        if drafter is None:
            pieces = draw_text(adapter, model, tokens, settings, generator)
        else:
            pieces = _drafted(adapter, model, drafter, tokens, settings, generator, tally)
        for new in pieces:
            if vocabulary.separator in new:
                new = new[: new.index(vocabulary.separator)]
                if new:
                    yield new[:left]
                return
            yield new[:left]
            left -= len(new)
            if left <= 0:
                return
    finally:
        model.train(was_training)


def generate_together(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    settings: SamplingSettings,
    seeds: Sequence[int],
) -> Iterator[list[list[int]]]:
    """Yields what each of some texts after one prompt gained in a step: a token, or nothing once it
    has reached a separator. Each text is that of `generate_tokens` with its own seed, in the place
    of `settings.seed`, up to how the model's products round more rows than one.

    For models that read from left to right.
    """
    check_settings(settings)
    tokens = [vocabulary.separator, *vocabulary.encode(prompt)]
    generators = [seeded_generator(seed, 5) for seed in seeds]
    running = [True] * len(generators)
    was_training = model.training
    model.eval()
    try:
        with adapter.at_steps(model, settings.num_steps):
            for step in autoregressive_rows(adapter, model, tokens, settings, generators):
                running = [
                    goes_on and token != vocabulary.separator
                    for goes_on, token in zip(running, step, strict=True)
                ]
                if not any(running):
                    return
                yield [
                    [token] if goes_on else [] for goes_on, token in zip(running, step, strict=True)
                ]
    finally:
        model.train(was_training)


def infill_tokens(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    suffix: str,
    settings: SamplingSettings,
) -> list[int]:
    """`settings.max_tokens` new tokens between `prompt` and `suffix`, drawn given both. Of a text
    longer than the model's window, what is nearest to the hole counts.

    Raises: ConfigError when the model cannot (`can_denoise`) or the hole is too long.
    """
    check_settings(settings)
    if not adapter.can_denoise:
        raise ConfigError(
            f"{type(model).__name__} writes from left to right and cannot fill a gap; use a model "
            "that denoises whole windows"
        )
    before = [vocabulary.separator, *vocabulary.encode(prompt)]
    after = vocabulary.encode(suffix)
    limit = cast(DenoisingModel, model).max_context
    num_before, num_after = fit_window(before, settings.max_tokens, after, limit)
    start = len(before) - num_before
    window = [*before[start:], *[None] * settings.max_tokens, *after[:num_after]]
    was_training = model.training
    model.eval()
    try:
        filled = denoised(
            adapter,
            model,
            before[:start],
            window,
            after[num_after:],
            settings,
            seeded_generator(settings.seed, 5),
        )
    finally:
        model.train(was_training)
    return filled[num_before : num_before + settings.max_tokens]


def _drafted(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    drafter: Drafter,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
    tally: Tally | None,
) -> Iterator[list[int]]:
    with adapter.at_steps(model, settings.num_steps):
        yield from speculative(drafter, prompt, settings, generator, tally=tally)
