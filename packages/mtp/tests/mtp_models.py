"""Small models for the tests; B batch, T sequence, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import OptimConfig
from nanozoo_core.contract import Batch, Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_mtp.adapter import MTPAdapter
from nanozoo_mtp.config import MTPConfig
from nanozoo_mtp.model import MTP

VOCAB = 31
ADAPTER = MTPAdapter(MTPConfig, MTP)
STEP = Step(number=0, progress=0.0, seed=0)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "seq_len": 48,
    "num_layers": 4,
    "model_dim": 32,
    "num_heads": 2,
    "num_mtp_tokens": 3,
}


def build(*, moved: float = 0.1, dtype: torch.dtype = torch.float32, **settings: Any) -> MTP:
    """A model whose weights are all away from zero, unless moved=0."""
    torch.manual_seed(0)
    model = MTP(MTPConfig(**SMALL | settings)).to(dtype)
    move(model, moved)
    return model


@torch.no_grad()
def move(model: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter += (scale * noise).to(parameter.dtype)


def random_tokens(rows: int, length: int, seed: int = 0, vocab_size: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=generator)


def random_batch(rows: int = 4, length: int = 24, lookahead: int = 1, seed: int = 0) -> Batch:
    return batch_of(random_tokens(rows, length + lookahead, seed), lookahead=lookahead)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def all_logits(model: MTP, tokens: Tensor) -> Tensor:
    """(n, B, T, V) of all heads."""
    return torch.stack([model.logits(features) for features in model.horizons(tokens)])


def train(model: MTP, batches: list[Batch], lr: float = 1e-2) -> None:
    optim = OptimConfig(name="adamw", lr=lr, warmup=10, decay_fraction=0.7)
    groups = ADAPTER.optimizer_groups(model, optim)
    optimizers = build_optimizers(
        groups, optim, total_steps=len(batches), device=torch.device("cpu")
    )
    model.train()
    for number, batch in enumerate(batches):
        step = Step(number=number, progress=number / len(batches), seed=0)
        optimizers.set_schedule(number, step.progress)
        ADAPTER.training_loss(model, batch, step).value.backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
    model.eval()
