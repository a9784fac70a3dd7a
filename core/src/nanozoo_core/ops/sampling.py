"""Tokens from logits: the distribution that sampling settings make of them, and draws from it.

V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.ops.categorical import draw_categorical


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


def draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    """One token from each of some distributions (..., V), which need not sum to one. Returns: (...)
    int64."""
    points = torch.rand(probs.shape[:-1], generator=generator, dtype=torch.float64)
    return draw_categorical(probs, points)


def sample(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """One token from logits (V,)."""
    if settings.temperature == 0:
        return int(logits.argmax())
    return int(draw(probabilities(logits, settings).cpu(), generator))
