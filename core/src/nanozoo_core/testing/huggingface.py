"""Checks of the way to transformers and back, for the packages that have one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and the same bits under each."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def assert_written_back(source: Mapping[str, Tensor], back: Mapping[str, Tensor]) -> None:
    """Weights read from transformers and written again are theirs to the bit, but for a head that
    repeats the embedding, which need not be written."""
    assert set(source) - set(back) <= {"lm_head.weight"}
    assert_same_weights(back, {name: source[name] for name in source if name in back})
