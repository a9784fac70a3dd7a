"""From negative log-likelihoods in nats to the units in which scores are told."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

from nanozoo_core.contract import Batch, Vocabulary

Nats = TypeVar("Nats", float, Tensor)


def in_bits(nats: Nats) -> Nats:
    """A negative log-likelihood, or a tensor of such, in bits."""
    return nats / math.log(2)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits for each UTF-8 byte of a text of `num_bytes`, from its nats in all."""
    return nats * (1 / (math.log(2) * num_bytes))


def target_bytes(batch: Batch, vocabulary: Vocabulary) -> int:
    """UTF-8 bytes of the tokens of a batch that are scored."""
    sizes = vocabulary.token_bytes[batch.targets.cpu()]  # (B, T)
    return int((sizes if batch.scored is None else sizes * batch.scored.cpu()).sum())
