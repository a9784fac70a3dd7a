"""One token after another, from a model that reads from left to right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.ops.sampling import sample


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
