"""What training reaches at several depths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rd_models import make_config, think

from nanozoo_core.config import OptimConfig, from_defaults
from nanozoo_core.contract import Draw, Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing import source_code
from nanozoo_core.testing.sources import MarkovSource, batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_rd.adapter import RDAdapter, draw_step
from nanozoo_rd.config import RDConfig
from nanozoo_rd.model import EVAL_KEY, RecurrentDepth

ADAPTER = RDAdapter(RDConfig, RecurrentDepth)
SIZES = {"model_dim": 32, "num_heads": 2, "mlp_dim": 64, "num_core_layers": 1}


LossOf = Callable[[RecurrentDepth, Step], torch.Tensor]


def trained(loss_of: LossOf, num_steps: int, optim: OptimConfig, **changes) -> RecurrentDepth:
    config = make_config(**(SIZES | changes))
    torch.manual_seed(0)
    model = ADAPTER.build(config, ToyVocabulary(config.vocab_size))
    groups = ADAPTER.optimizer_groups(model, optim)
    cpu = torch.device("cpu")
    optimizers = build_optimizers(groups, optim, total_steps=num_steps, device=cpu)
    for number in range(num_steps):
        step = Step(number, number / num_steps, seed=0)
        optimizers.set_schedule(number, step.progress)
        loss_of(model, step).backward()
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

    def loss_of(model: RecurrentDepth, step: Step) -> torch.Tensor:
        batch = batch_of(source.sample(16, 33, step.number))
        return ADAPTER.training_loss(model, batch, step).value

    optim = from_defaults(OptimConfig, name="adamw", lr=1e-2, warmup=0.05, decay_fraction=0.7)
    model = trained(loss_of, 200, optim, vocab_size=8)
    fresh = source.sample(256, 33, seed=10_000)
    for depth in (1, 4, 16):
        excess = (nats_at(model, fresh, depth) - source.nats(fresh)) / 32
        error = float(excess.std()) / math.sqrt(len(excess))
        assert -3 * error < float(excess.mean()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_text_is_better_with_each_iteration_of_training_and_no_worse_beyond(seed: int) -> None:
    """4 iterations is the middle of what training draws. The initial state does not matter."""
    shape = {"num_prelude_layers": 1, "num_core_layers": 1, "num_coda_layers": 1, "num_layers": 3}
    optim = {"name": "muon", "lr": 1e-2, "warmup": 0.05, "decay_fraction": 0.7}
    adapter, model = source_code.trained("rd", seed, 100, optim, **shape)
    text = source_code.windows(0, 256, held_out=True)
    found = adapter.inspect(model, [text], ToyVocabulary(source_code.NUM_BYTES)).metrics
    bits = {depth: found[f"bpb_depth_{depth}"] for depth in (1, 2, 4, 8, 16)}
    assert bits[1] > bits[2] > bits[4]
    assert bits[1] > 1.02 * bits[4]
    assert max(bits[8], bits[16]) < 1.002 * bits[4]
    assert found["bpb_over_seeds_std"] < 0.001 * bits[4]


# -- a task that needs depth --------------------------------------------------------------------

NUM_PLACES, NUM_STARTS = 6, 6
CHAINS = {
    "vocab_size": NUM_PLACES**2 + NUM_PLACES,
    "model_dim": 48,
    "mlp_dim": 96,
    "k_trunc": "full",
}


def chains(hops: int, seed: int, batch_size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """A permutation in random order, a token for each pair (place, where it points), and then
    places to start from: tokens (B, T); and where `hops` pointers lead from each, (B, starts)."""
    generator = torch.Generator().manual_seed(seed)
    points_to = torch.rand(batch_size, NUM_PLACES, generator=generator).argsort(1)
    order = torch.rand(batch_size, NUM_PLACES, generator=generator).argsort(1)
    table = order * NUM_PLACES + points_to.gather(1, order)
    ends = starts = torch.randint(NUM_PLACES, (batch_size, NUM_STARTS), generator=generator)
    for _ in range(hops):
        ends = points_to.gather(1, ends)
    return torch.cat([table, NUM_PLACES**2 + starts], dim=1), ends


def trained_on_chains(hops: int | None, **changes) -> RecurrentDepth:
    """Trained to follow `hops` pointers, or as many as it has iterations in that step."""

    def loss_of(model: RecurrentDepth, step: Step) -> torch.Tensor:
        depth, key = draw_step(model.config, step)
        tokens, ends = chains(hops or depth, seed=step.number)
        state = model.initial_state(key, torch.arange(tokens.shape[1]), torch.arange(len(tokens)))
        logits, _ = think(model, tokens, depth, state=state)
        return F.cross_entropy(logits[:, NUM_PLACES:, :NUM_PLACES].flatten(0, 1), ends.flatten())

    optim = from_defaults(OptimConfig, name="muon", lr=5e-3, warmup=0.05, decay_fraction=0.8)
    optim = replace(optim, muon=replace(optim.muon, lr=0.012))
    return trained(loss_of, 300, optim, **CHAINS | changes)


@torch.no_grad()
def share_found(model: RecurrentDepth, hops: int, depth: int, key: int = EVAL_KEY) -> float:
    """Of the ends of chains, those found after `depth` iterations on the initial state of `key`."""
    tokens, ends = chains(hops, seed=10_000, batch_size=256)
    state = model.initial_state(key, torch.arange(tokens.shape[1]))
    logits, _ = think(model, tokens, depth, state=state)
    return float((logits[:, NUM_PLACES:, :NUM_PLACES].argmax(-1) == ends).float().mean())


def test_iterations_follow_a_chain_further_than_any_in_training() -> None:
    """Trained to follow as many pointers as it has iterations, 1 to 3, it follows 4 with 4. Fewer
    do not, and neither does a model of the same size that learned the 4 with one iteration."""
    model = trained_on_chains(None, sampling="uniform", mean_recurrence=2)
    for key in (EVAL_KEY, 1, 2):
        assert share_found(model, hops=4, depth=4, key=key) > 0.8
    assert max(share_found(model, hops=4, depth=depth) for depth in (1, 2, 3)) < 0.6
    flat = trained_on_chains(4, sampling="fixed", mean_recurrence=1)
    assert share_found(flat, hops=4, depth=1) < 0.65
