"""Drawing text: sampling from logits, the autoregressive loop over a cache, and infilling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings, Vocabulary, seeded_generator
from nanozoo_core.errors import ConfigError, Problems

if TYPE_CHECKING:
    from nanozoo_core.default_model_adapter import DefaultModelAdapter


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


def probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """The distribution that `sample` draws from, (..., V) float64: logits after temperature, then
    top-k, then top-p (the smallest set of tokens whose mass reaches it). Greedy is one-hot."""
    logits = logits.double()
    if settings.temperature == 0:
        return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        smallest = logits.topk(settings.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probs = logits.softmax(-1)
    if settings.top_p < 1:
        ordered, order = probs.sort(descending=True, dim=-1)
        keep = ordered.cumsum(-1) - ordered < settings.top_p
        probs = torch.zeros_like(probs).scatter(-1, order, ordered * keep)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def sample(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """One token from logits (V,), by inverse CDF in float64."""
    if settings.temperature == 0:
        return int(logits.argmax())
    probs = probabilities(logits, settings).cpu()
    cumulative = probs.cumsum(-1)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    return min(int(torch.searchsorted(cumulative, point, right=True)), int(probs.nonzero()[-1]))


@torch.no_grad()
def autoregressive(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """Yields one token at a time, decoded with the adapter's cache.

    A model with a longest context (`max_context`) continues past it by dropping the older half of
    the text and reading the rest again from position 0, which costs O(context) per token on
    average. Raises: ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token, such as the separator")
    device = next(model.parameters()).device
    limit: int | None = getattr(model, "max_context", None)
    text = list(prompt)

    def read(tokens: list[int], cache: object) -> Tensor:
        batch = torch.tensor([tokens], device=device)
        if cache is None:
            return model(batch)[0, -1]
        lengths = torch.tensor([len(tokens)], device=device)
        return adapter.prefill(model, batch, lengths, cache)[0]

    def fresh_cache(length: int) -> object:
        if not settings.use_cache:
            return None
        capacity = length + settings.max_tokens if limit is None else limit
        return adapter.init_cache(model, 1, capacity)

    start = len(text) if limit is None else min(len(text), limit)
    window = text[-start:]
    cache = fresh_cache(len(window))
    logits = read(window, cache)
    for count in range(settings.max_tokens):
        token = sample(logits, settings, generator)
        yield [token]
        if count + 1 == settings.max_tokens:
            return
        window.append(token)
        if limit is not None and len(window) > limit:
            window = window[-(limit // 2 or 1) :]
            cache = fresh_cache(len(window))
            logits = read(window, cache)
        elif cache is None:
            logits = read(window, None)
        else:
            step = torch.tensor([[token]], device=device)
            logits = adapter.append(model, step, cache)[0, -1]


def generate_tokens(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    settings: SamplingSettings,
) -> Iterator[list[int]]:
    """Yields new tokens after `prompt` until a separator or `settings.max_tokens`.

    Documents start with a separator, so every prompt does; an empty one is the separator alone.
    """
    check_settings(settings)
    generator = seeded_generator(settings.seed, 5)
    tokens = [vocabulary.separator, *vocabulary.encode(prompt)]
    was_training = model.training
    model.eval()
    try:
        left = settings.max_tokens
        for new in adapter.generate(model, tokens, settings, generator):
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
    from nanozoo_core.diffusion.generation import denoised, fit_window

    check_settings(settings)
    if not adapter.can_denoise:
        raise ConfigError(
            f"{type(model).__name__} writes from left to right and cannot fill a gap; use a model "
            "that denoises whole windows"
        )
    before = [vocabulary.separator, *vocabulary.encode(prompt)]
    after = vocabulary.encode(suffix)
    limit = cast(int, model.max_context)
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
