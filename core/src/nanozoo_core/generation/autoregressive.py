"""One token after another, from a model that reads from left to right.

B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.ops.sampling import sample

log = logging.getLogger(__name__)


def autoregressive(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """Yields one token at a time: `autoregressive_rows` of one text."""
    return autoregressive_rows(adapter, model, prompt, settings, [generator])


@torch.no_grad()
def autoregressive_rows(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
) -> Iterator[list[int]]:
    """Yields one token of each of B texts at a time, decoded together with the adapter's cache: a
    text for each of the `generators`, all after the same prompt.

    A model with a longest context (`max_context`) continues past it by dropping the older half of
    the text and reading the rest again from position 0, which costs O(context) per token on
    average. A model without a cache reads the whole text for every token, which is said once.
    Raises: ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token, such as the separator")
    device = next(model.parameters()).device
    limit: int | None = getattr(model, "max_context", None)
    has_cache = adapter.has_cache(model)
    if settings.use_cache and not has_cache:
        _say_that_all_is_read_again(type(model).__name__)

    def read(windows: list[list[int]], state: object) -> Tensor:
        """Logits (B, V) behind windows of equal length."""
        batch = torch.tensor(windows, device=device)  # (B, T)
        if state is None:
            return model(batch)[:, -1]
        lengths = torch.full((len(batch),), batch.shape[1], device=device)
        return adapter.prefill(model, batch, lengths, state)

    def fresh_cache(length: int) -> object:
        if not settings.use_cache or not has_cache:
            return None
        capacity = length + settings.max_tokens if limit is None else limit
        return adapter.init_cache(model, len(generators), capacity)

    length = len(prompt) if limit is None else min(len(prompt), limit)
    windows = [list(prompt[-length:]) for _ in generators]
    state = fresh_cache(length)
    logits = read(windows, state)
    for count in range(settings.max_tokens):
        tokens = [sample(row, settings, g) for row, g in zip(logits, generators, strict=True)]
        yield tokens
        if count + 1 == settings.max_tokens:
            return
        for window, token in zip(windows, tokens, strict=True):
            window.append(token)
        length += 1
        if limit is not None and length > limit:
            length = limit // 2 or 1
            windows = [window[-length:] for window in windows]
            state = fresh_cache(length)
            logits = read(windows, state)
        elif state is None:
            logits = read(windows, None)
        else:
            step = torch.tensor(tokens, device=device)[:, None]  # (B, 1)
            logits = adapter.append(model, step, state)[:, -1]


@cache
def _say_that_all_is_read_again(name: str) -> None:
    log.warning(
        "%s has no init_cache: every new token reads the whole text again, which is slow",
        name,
    )
