"""Means of a bound's terms, over all windows and by the level of their noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nanozoo_core.diffusion.levels import by_level, level_curves, means_by_unit
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.sources import batch_of


def test_means_are_over_scored_tokens_of_windows_and_of_parts():
    """Five windows of 4, 4, 2, 4 and 4 scored tokens; two parts hold one window and one none."""
    scored = torch.ones(3, 4, dtype=torch.bool)
    scored[2, 2:] = False
    batches = [
        replace(batch_of(torch.zeros(3, 5, dtype=torch.int64)), scored=scored),
        batch_of(torch.zeros(2, 5, dtype=torch.int64)),
    ]
    levels = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.9, 0.8])]
    nats = [torch.tensor([[4.0, 1.0], [8.0, 1.0], [6.0, 1.0]]), torch.tensor([[2.0, 0.0]] * 2)]
    parts, means = by_level(batches, levels, nats)
    assert parts == [[12 / 8, 2 / 8], [6 / 2, 1 / 2], [0, 0], [4 / 8, 0]]
    assert means == pytest.approx([22 / 18, 3 / 18])
    curves = level_curves(("bound", "rest"), parts)
    assert curves["bound"] == [(0.125, 1.5), (0.375, 3.0), (0.625, 0.0), (0.875, 0.5)]
    assert curves["rest"][1] == (0.375, 0.5)
    units = means_by_unit({"bound": means[0]}, batches, ToyVocabulary(8))
    assert units["bound_nats_per_token"] == pytest.approx(22 / 18)
    assert units["bound_bits_per_byte"] == pytest.approx(22 / 18 / math.log(2))
