"""Small models for the tests; B batch, T sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_rd.config import RDConfig
from nanozoo_rd.model import RecurrentDepth, Thought

VOCAB, DIM = 61, 32
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "seq_len": 64,
    "num_prelude_layers": 1,
    "num_core_layers": 2,
    "num_coda_layers": 1,
    "model_dim": DIM,
    "num_heads": 2,
    "mlp_dim": 48,
}


def make_config(**changes: Any) -> RDConfig:
    """The default settings with changes."""
    config: RDConfig = model_config("rd", changes)
    return config


def build(
    *, moved: bool = True, dtype: torch.dtype = torch.float32, **changes: Any
) -> RecurrentDepth:
    """A model with gains and biases moved off their neutral values, unless `moved` is false."""
    torch.manual_seed(0)
    model = RecurrentDepth(make_config(**(SMALL | changes)))
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1 or parameter.shape[0] == 2:
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def random_tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, length), generator=generator)


def think(
    model: RecurrentDepth,
    tokens: Tensor,
    depth: int,
    num_backprop: int | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Thought]:
    """Logits (B, T, V) and states after `depth` iterations from `state`, or evaluation's s_0."""
    positions = torch.arange(tokens.shape[1])
    angles = model.angles(positions)
    injected = model.read(tokens, angles)
    if state is None:
        state = model.initial_state(0, positions)
    thought = model.iterate(state.expand_as(injected), injected, angles, depth, num_backprop)
    return model.logits(model.finish(thought.state, angles)), thought
