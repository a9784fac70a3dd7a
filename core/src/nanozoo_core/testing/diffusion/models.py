"""Small models of one package, and windows for them.

B windows, L scored tokens, S = L + 1 positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.laws import perturb
from nanozoo_core.testing.sources import batch_of

Changes = Mapping[str, Any]

TRAINING_AS_PUBLISHED: Changes = {
    "train_noise_min": 0.0,
    "train_noise_max": 1.0,
    "train_draws": 1,
    "tie_embeddings": False,
}
"""Training that draws all noise once, so that its loss is the bound, and a head that starts at
zero, so that the first predictions are even: what most laws are about."""

AS_PUBLISHED: Changes = {**TRAINING_AS_PUBLISHED, "locality": 0.0}
"""The same without locality, for texts that are learned by heart: by place, and not by what stands
near."""


@dataclass(frozen=True)
class SmallModels:
    """Variants of one model, small enough to be built for every test."""

    name: str
    variants: Mapping[str, Changes]
    """Settings of each by its name; the first is what the laws of one model alone are tested on."""
    settings: Changes
    """Of all of them, beside the sizes below."""
    vocab_size: int = 24
    seq_len: int = 10
    model_dim: int = 32
    num_layers: int = 2
    scale: float = 0.1
    """How far weights are moved from their start."""

    @cached_property
    def adapter(self) -> DefaultModelAdapter:
        return load_adapter(self.name)

    @property
    def first(self) -> str:
        return next(iter(self.variants))

    def config(self, variant: str | None = None, **changes: object) -> Any:
        sizes = {
            key: getattr(self, key) for key in ("vocab_size", "seq_len", "model_dim", "num_layers")
        }
        chosen = self.variants[variant or self.first]
        fixed = {**sizes, "num_heads": 2, **TRAINING_AS_PUBLISHED, **self.settings}
        return model_config(self.name, {**fixed, **chosen, **changes})

    def make(self, variant: str | None = None, *, moved: bool = True, **changes: object) -> Any:
        """A model fitted to random windows; `moved` takes it away from the zeros of its start,
        behind which gradients do not flow."""
        torch.manual_seed(0)
        model = self.adapter.make_model(self.config(variant, **changes))
        self.adapter.prepare_model(model, [self.windows(40, seed=2)])
        if moved:
            perturb(model, self.scale)
        return model

    def windows(self, count: int = 6, scored: Tensor | None = None, seed: int = 1) -> Batch:
        """Random ones; `scored` is (B, L)."""
        shape = (count, self.seq_len + 1)
        tokens = torch.randint(self.vocab_size, shape, generator=seeded_generator(seed))
        return dataclasses.replace(batch_of(tokens), scored=scored)

    def scored_before(self, place: int, *rows: int) -> Tensor:
        """(6, L) bool: all but the tokens from `place` on, in `rows` alone if any are named."""
        scored = torch.ones(6, self.seq_len, dtype=torch.bool)
        scored[list(rows) or slice(None), place:] = False
        return scored


def sampler_models(name: str, variants: Mapping[str, Changes], settings: Changes) -> SmallModels:
    """Models smaller still, but of longer windows, in which a text goes on by five tokens."""
    return SmallModels(
        name,
        variants,
        {"sar_chunk_size": 5, **settings},
        vocab_size=20,
        seq_len=12,
        model_dim=16,
        num_layers=1,
        scale=0.2,
    )


def watch(model: Any) -> list[Tensor]:
    """The windows (B, S) that the model's network reads from now on, call by call."""
    seen: list[Tensor] = []
    features = model.net.features

    def spy(tokens: Tensor, time: Tensor | None = None, **view: Any) -> Tensor:
        seen.append(tokens)
        return features(tokens, time, **view)

    model.net.features = spy
    return seen


def reached(model: nn.Module) -> set[str]:
    """The parameters whose gradient is not zero everywhere."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }
