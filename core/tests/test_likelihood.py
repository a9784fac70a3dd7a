from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nanozoo_core.likelihood import bits_per_byte, in_bits, target_bytes
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.sources import batch_of


def test_a_uniform_byte_costs_eight_bits() -> None:
    assert in_bits(math.log(256)) == pytest.approx(8)
    assert in_bits(torch.tensor([0.0, math.log(2)])).tolist() == pytest.approx([0, 1])
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)
    assert bits_per_byte(10 * math.log(256), 20) == pytest.approx(4)


def test_only_scored_targets_count_their_bytes() -> None:
    vocabulary = ToyVocabulary(4)
    vocabulary.token_bytes = torch.tensor([0, 1, 2, 5])
    batch = batch_of(torch.tensor([[3, 0, 1, 3], [0, 2, 2, 1]]))
    assert target_bytes(batch, vocabulary) == 0 + 1 + 5 + 2 + 2 + 1
    scored = torch.tensor([[True, True, False], [False, True, True]])
    assert target_bytes(replace(batch, scored=scored), vocabulary) == 0 + 1 + 2 + 1
