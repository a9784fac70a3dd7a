"""Short trainings: loads even out, and experts take to the modes of a source."""

import pytest
import torch

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Draw, Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import MarkovSource, batch_of
from nanozoo_moe.adapter import MoEAdapter
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.model import MoE

ADAPTER = MoEAdapter(MoEConfig, MoE)


def train(model, sample, steps):
    """`steps` of the default optimisers; returns the metrics of each."""
    optim = from_defaults(OptimConfig)
    groups = ADAPTER.optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=steps, device=torch.device("cpu"))
    rows = []
    for number in range(steps):
        step = Step(number=number, progress=number / steps, seed=0)
        optimizers.set_schedule(number, step.progress)
        loss = ADAPTER.training_loss(model, batch_of(sample(number)), step)
        loss.value.backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
        ADAPTER.after_step(model, step, optimizers.optimizers)
        rows.append(loss.metrics)
    return rows


def make_model(vocab_size, **settings):
    torch.manual_seed(0)
    shape = {"seq_len": 32, "num_layers": 3, "model_dim": 64, "num_heads": 2}
    return MoE(model_config("moe", {"vocab_size": vocab_size, **shape | settings}))


class TwoModes:
    """Each window keeps to the even or the odd tokens of 16, a Markov chain in either."""

    def __init__(self):
        self.source = MarkovSource(8)

    def modes(self, num_windows, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(2, (num_windows, 1), generator=generator)

    def sample(self, seed, num_windows=32):
        return 2 * self.source.sample(num_windows, 33, seed) + self.modes(num_windows, seed)

    def nats(self, tokens):
        return self.source.nats(tokens // 2)


def mutual_information(experts, modes, num_experts):
    """In nats, between a token's chosen experts and the mode of its window."""
    joint = torch.zeros(num_experts, 2, dtype=torch.float64)
    chosen = experts.flatten(1)
    index = (chosen.flatten(), modes.expand_as(chosen).flatten())
    joint.index_put_(index, torch.ones(chosen.numel(), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.special.xlogy(joint, joint / independent).nan_to_num().sum())


@pytest.mark.slow
def test_loads_even_out_in_every_layer():
    source = MarkovSource(64)
    model = make_model(64, num_experts=16)
    rows = train(model, lambda seed: source.sample(32, 33, seed), 300)
    for number in (1, 2):
        last = [float(row[f"block{number}_max_vio"]) for row in rows[-20:]]
        assert sum(last) / 20 < 1


def test_experts_take_to_the_modes_of_a_source():
    source = TwoModes()
    model = make_model(16)
    train(model, source.sample, 150)
    model.eval()
    tokens, modes = source.sample(10_000, 64), source.modes(64, 10_000)
    with torch.no_grad():
        excess = ADAPTER.nll(model, batch_of(tokens), Draw(0)).nats - source.nats(tokens)
        _, routings = model.encode(tokens[:, :-1])
    found = [mutual_information(routing.experts, modes, 8) for routing in routings]
    # A choice without regard to the mode has about (8 - 1) (2 - 1) / (2 * 4096) nats by chance.
    assert max(found) > 0.05
    assert float(excess.mean()) / 32 < 0.08
