"""What training reaches at several depths."""

from __future__ import annotations

import math

import pytest
import torch
from rd_models import make_config

from nanozoo_core.config import OptimConfig, from_defaults
from nanozoo_core.contract import Draw, Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import MarkovSource, batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_rd.adapter import RDAdapter
from nanozoo_rd.config import RDConfig
from nanozoo_rd.model import RecurrentDepth

ADAPTER = RDAdapter(RDConfig, RecurrentDepth)
SIZES = {"model_dim": 32, "num_heads": 2, "mlp_dim": 64, "num_core_layers": 1}


def trained(batches, **changes) -> RecurrentDepth:
    config = make_config(**(SIZES | changes))
    torch.manual_seed(0)
    model = ADAPTER.build(config, ToyVocabulary(config.vocab_size))
    optim = from_defaults(OptimConfig, name="adamw", lr=1e-2, warmup=0.05, decay_fraction=0.7)
    groups = ADAPTER.optimizer_groups(model, optim)
    cpu = torch.device("cpu")
    optimizers = build_optimizers(groups, optim, total_steps=len(batches), device=cpu)
    for number, tokens in enumerate(batches):
        step = Step(number, number / len(batches), seed=0)
        optimizers.set_schedule(number, step.progress)
        ADAPTER.training_loss(model, batch_of(tokens), step).value.backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
    return model.eval()


@torch.no_grad()
def nats_at(model: RecurrentDepth, tokens: torch.Tensor, depth: int) -> torch.Tensor:
    model.decoding = model.decoding.at(depth)
    return ADAPTER.nll(model, batch_of(tokens), Draw(0)).nats


@pytest.mark.slow
def test_a_source_that_needs_no_depth_is_learned_at_every_depth() -> None:
    source = MarkovSource(8)
    model = trained([source.sample(16, 33, seed) for seed in range(200)], vocab_size=8)
    fresh = source.sample(256, 33, seed=10_000)
    for depth in (1, 4, 16):
        excess = (nats_at(model, fresh, depth) - source.nats(fresh)) / 32
        error = float(excess.std()) / math.sqrt(len(excess))
        assert -3 * error < float(excess.mean()) < 0.02
