"""A small real text for tests of learning: bytes of Python's standard library, and a training and a
score on them that take seconds."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw
from nanozoo_core.data.corpora import stdlib_corpus
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.testing.training import train_on_batches

NUM_BYTES = 256
LENGTH = 64
ROWS = 16
EVERY = 8  # of the files one is held out
SHAPE = {"num_layers": 4, "model_dim": 64, "num_heads": 2, "seq_len": LENGTH}


@cache
def text(*, held_out: bool) -> Tensor:
    """(N,) uint8: the files one after the other, of which one in eight is held out."""
    files = stdlib_corpus().files
    kept = [f for n, f in enumerate(files) if (n % EVERY == EVERY - 1) == held_out]
    return torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in kept)), dtype=torch.uint8)


def windows(seed: int, num_windows: int = ROWS, *, held_out: bool = False) -> Batch:
    """Windows of 64 bytes and their next from places that the seed draws."""
    data = text(held_out=held_out)
    generator = seeded_generator(seed, 103)
    starts = torch.randint(len(data) - LENGTH, (num_windows, 1), generator=generator)
    return batch_of(data[starts + torch.arange(LENGTH + 1)].long())


def trained(
    name: str, seed: int, num_steps: int, optim: dict[str, Any], **changes: Any
) -> tuple[DefaultModelAdapter, Any]:
    """The adapter and a tiny model of that name, trained on `num_steps` times 1024 bytes that the
    seed draws, with those settings of `optim`."""
    adapter = load_adapter(name)
    torch.manual_seed(seed)
    config = model_config(name, {"vocab_size": NUM_BYTES, **SHAPE, **changes})
    model = adapter.build(config, ToyVocabulary(NUM_BYTES))
    batches = [windows(1000 * seed + n) for n in range(num_steps)]
    train_on_batches(adapter, model, batches, optim=from_defaults(OptimConfig, **optim))
    return adapter, model


@torch.no_grad()
def held_out_bits(adapter: DefaultModelAdapter, model: Any, num_windows: int = 256) -> float:
    """Bits per byte of the same held-out windows for every model."""
    batch = windows(0, num_windows, held_out=True)
    nats = adapter.nll(model.eval(), batch, Draw(0)).nats
    return float(nats.sum()) / (num_windows * LENGTH * math.log(2))
