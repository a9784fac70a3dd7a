"""One token after another, from a model that reads from left to right."""

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
    average. A model without a cache reads the whole text for every token, which is said once.
    Raises: ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token, such as the separator")
    device = next(model.parameters()).device
    limit: int | None = getattr(model, "max_context", None)
    text = list(prompt)
    has_cache = adapter.has_cache(model)
    if settings.use_cache and not has_cache:
        _say_that_all_is_read_again(type(model).__name__)

    def read(tokens: list[int], state: object) -> Tensor:
        batch = torch.tensor([tokens], device=device)
        if state is None:
            return model(batch)[0, -1]
        lengths = torch.tensor([len(tokens)], device=device)
        return adapter.prefill(model, batch, lengths, state)[0]

    def fresh_cache(length: int) -> object:
        if not settings.use_cache or not has_cache:
            return None
        capacity = length + settings.max_tokens if limit is None else limit
        return adapter.init_cache(model, 1, capacity)

    start = len(text) if limit is None else min(len(text), limit)
    window = text[-start:]
    state = fresh_cache(len(window))
    logits = read(window, state)
    for count in range(settings.max_tokens):
        token = sample(logits, settings, generator)
        yield [token]
        if count + 1 == settings.max_tokens:
            return
        window.append(token)
        if limit is not None and len(window) > limit:
            window = window[-(limit // 2 or 1) :]
            state = fresh_cache(len(window))
            logits = read(window, state)
        elif state is None:
            logits = read(window, None)
        else:
            step = torch.tensor([[token]], device=device)
            logits = adapter.append(model, step, state)[0, -1]


@cache
def _say_that_all_is_read_again(name: str) -> None:
    log.warning(
        "%s has no init_cache: every new token reads the whole text again, which is slow",
        name,
    )
