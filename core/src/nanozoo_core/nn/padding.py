"""Rows of an embedding or a head past the vocabulary, which give a product a round shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def padded_size(vocab_size: int, multiple_of: int) -> int:
    """P: the vocabulary, rounded up to a multiple."""
    return math.ceil(vocab_size / multiple_of) * multiple_of


def padding_bias(vocab_size: int, num_rows: int) -> Tensor | None:
    """(P,): minus infinity for rows past the vocabulary, so that they take no probability; None
    where there are none."""
    if num_rows == vocab_size:
        return None
    bias = torch.zeros(num_rows)
    bias[vocab_size:] = -torch.inf
    return bias
