"""Tokens from logits: the distribution that sampling settings make of them, and draws from it.

V vocabulary.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.ops.categorical import draw_categorical


def probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """The distribution that `sample` draws from, (..., V) float64: logits after temperature, then
    top-k (of equal ones the first), then top-p (the smallest set of tokens whose mass reaches it,
    which is never empty). Greedy is one-hot."""
    logits = in_float64(logits)
    if settings.temperature == 0:
        return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    # The largest stays finite whatever it is divided by; a denormal divisor would count as zero.
    logits = logits - logits.amax(-1, keepdim=True)
    logits = logits / max(settings.temperature, sys.float_info.min)
    if 0 < settings.top_k < logits.shape[-1]:
        ordered, order = logits.sort(descending=True, dim=-1, stable=True)
        kept, places = ordered[..., : settings.top_k], order[..., : settings.top_k]
        logits = torch.full_like(logits, float("-inf")).scatter(-1, places, kept)
    probs = logits.softmax(-1)
    if settings.top_p < 1:
        ordered, order = probs.sort(descending=True, dim=-1)
        keep = ordered.cumsum(-1) - ordered < settings.top_p
        keep[..., 0] = True
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
