"""Text of any length from a model that denoises one window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter, DenoisingModel
from nanozoo_core.errors import ConfigError


def continue_text(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """Denoises what is left of the prompt's window at once; beyond it, slides on by the model's
    `chunk_size` tokens, the rest of the window being clean context. Of a prompt that leaves less
    room than that, what is nearest to its end counts. Yields each block when it is final.

    Reference: arXiv 2406.07524, semi-autoregressive decoding.
    Raises: ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token, such as the separator")
    denoiser = cast(DenoisingModel, model)
    limit, chunk_size = denoiser.max_context, denoiser.chunk_size
    text = list(prompt)
    left = settings.max_tokens
    while left > 0:
        context = text[-(limit - chunk_size) :]
        num_new = min(limit - len(context), left)
        before = text[: len(text) - len(context)]
        block = denoised(
            adapter, model, before, [*context, *[None] * num_new], [], settings, generator
        )[len(context) :]
        yield block
        text += block
        left -= num_new


def denoised(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    before: Sequence[int],
    window: PartialText,
    after: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
) -> list[int]:
    """`window` without holes. `before` and `after` are the text that did not fit into it, for
    whoever watches the steps.

    A text that is shorter than `denoised_length` gets holes behind it, and what they become is cut
    off again.

    Raises: ValueError when the window is too long or does not begin with a known token.
    """
    limit = cast(DenoisingModel, model).max_context
    if len(window) > limit:
        raise ValueError(f"{len(window)} tokens do not fit into a window of {limit}")
    if not window or window[0] is None:
        raise ValueError("the first token is context and cannot be a hole; start with a separator")

    def show(state: PartialText) -> None:
        if settings.on_step is not None:
            settings.on_step([*before, *state, *after])

    state = list(window)
    show(state)
    if None not in state:
        return cast(list[int], state)
    missing = adapter.denoised_length(model, len(window)) - len(window)
    padded = [*window, *[None] * missing]
    for whole in adapter.denoise(model, padded, settings, generator):
        if whole[: len(window)] != state:
            state = whole[: len(window)]
            show(state)
    tokens = [token for token in state if token is not None]
    assert len(tokens) == len(window), "denoising ended with holes left"
    return tokens


def fit_window(
    before: Sequence[int], num_holes: int, after: Sequence[int], limit: int
) -> tuple[int, int]:
    """How many tokens before and after `num_holes` holes fit into a window of `limit`: all where
    possible, else the nearest, shared evenly, with at least one before.

    Raises: ConfigError when the holes leave no room for a token on each side that has any.
    """
    room = limit - num_holes
    if room < 1 + bool(after):
        raise ConfigError(
            f"max_tokens={num_holes} leaves no room for the text around the gap in the model's "
            f"window of {limit} tokens; use at most {limit - 1 - bool(after)}"
        )
    num_before = min(len(before), max(room - len(after), (room + 1) // 2))
    return num_before, min(len(after), room - num_before)
