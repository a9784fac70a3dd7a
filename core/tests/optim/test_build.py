import logging

import pytest
import torch
from torch import nn

from nanozoo_core.config import AdamWConfig, MuonConfig, OptimConfig, from_defaults
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.optim.groups import Own, default_roles, make_groups
from nanozoo_core.optim.muon import Muon
from nanozoo_core.testing.laws import assert_same_tensors

CPU = torch.device("cpu")
TORCH_MUON = from_defaults(MuonConfig, impl="torch", orth="ns5", beta2=None, cautious=False)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.first = nn.Linear(24, 32)
        self.second = nn.Linear(32, 24, bias=False)
        self.head = nn.Linear(24, 40)

    def forward(self, tokens):
        return self.head(self.second(torch.relu(self.first(self.embed(tokens)))))


def model():
    torch.manual_seed(0)
    return Small()


def build(net, optim, *, lr_multipliers=None, total_steps=20):
    groups = make_groups(net, default_roles(net), optim, lr_multipliers=lr_multipliers)
    return build_optimizers(groups, optim, total_steps=total_steps, device=CPU)


def backward(net, seed=0):
    tokens = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()


def train(net, optimizers, steps):
    for step in steps:
        optimizers.set_schedule(step, step / 20)
        backward(net, step)
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()


EVERY = from_defaults(AdamWConfig, every=3, cautious=True, wd_power=2)
OPTIMS = {
    "every": from_defaults(OptimConfig, name="muon", adamw=EVERY, weight_decay=0.1),
    "muon": from_defaults(OptimConfig, name="muon", muon={"weight_decay": 0.1}, weight_decay=0.1),
    "adamw": from_defaults(OptimConfig, name="adamw", weight_decay=0.1),
    "torch": from_defaults(OptimConfig, name="muon", muon=TORCH_MUON),
}


@pytest.mark.parametrize("optim", OPTIMS.values(), ids=OPTIMS)
def test_training_goes_on_to_the_same_bits(optim):
    whole = model()
    optimizers = build(whole, optim)
    train(whole, optimizers, range(20))
    first = model()
    before = build(first, optim)
    train(first, before, range(11))
    state = before.full_state()
    second = model()
    second.load_state_dict(first.state_dict())
    after = build(second, optim)
    after.load_full_state(state)
    train(second, after, range(11, 20))
    for a, b in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    assert_same_tensors(after.full_state(), optimizers.full_state())


def test_state_is_flat_and_a_copy():
    net = model()
    optimizers = build(net, OPTIMS["muon"])
    train(net, optimizers, range(2))
    state = optimizers.full_state()
    assert float(state["embed.weight.step"]) == 2
    assert state["first.weight.momentum"].shape == net.first.weight.shape
    held = {key: value.clone() for key, value in state.items()}
    train(net, optimizers, range(2, 4))
    assert all(torch.equal(state[key], held[key]) for key in state)


@pytest.mark.parametrize("name", ["muon", "adamw", "torch"])
@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_multipliers_survive_the_schedule(name, schedule):
    base = OPTIMS[name]
    optim = from_defaults(
        OptimConfig, name=base.name, muon=base.muon, schedule=schedule, warmup=0.2
    )
    net = model()
    optimizers = build(net, optim, lr_multipliers={"first.weight": 4.0, "head.bias": 3.0})

    def rate(parameter):
        for optimizer in optimizers.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return group["lr"] * group.get("lr_mult", 1.0)
        raise AssertionError

    for step in range(20):
        optimizers.set_schedule(step, step / 20)
        assert rate(net.first.weight) == pytest.approx(4 * rate(net.second.weight))
        assert rate(net.head.bias) == pytest.approx(3 * rate(net.first.bias))
        assert rate(net.second.weight) == pytest.approx(optimizers.current_lr())


def test_multipliers_survive_torchs_schedulers():
    net = model()
    optimizers = build(net, OPTIMS["muon"], lr_multipliers={"first.weight": 4.0})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizers.muon, lambda step: 0.5)
    optimizers.muon.step()
    scheduler.step()
    rates = {g["param_names"][0]: g["lr"] * g["lr_mult"] for g in optimizers.muon.param_groups}
    assert rates == pytest.approx({"first.weight": 0.04, "second.weight": 0.01})


def test_momentum_is_scheduled_with_the_rate():
    net = model()
    optimizers = build(net, from_defaults(OptimConfig, muon={"warmup_steps": 10}))
    found = []
    for step in (0, 5, 10, 15):
        optimizers.set_schedule(step, step / 20)
        found.append(optimizers.muon.param_groups[0]["momentum"])
    assert found == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_clipping_bounds_adamw_and_spares_muon():
    net = model()
    optimizers = build(net, OPTIMS["muon"])
    backward(net)
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    everything = torch.cat([g.flatten() for g in gradients.values()]).norm()
    torch.testing.assert_close(optimizers.clip(0.0), everything)
    torch.testing.assert_close(optimizers.clip(1e-3), everything)
    for name in ("first.weight", "second.weight"):
        assert torch.equal(net.get_parameter(name).grad, gradients.pop(name))
    left = torch.cat([net.get_parameter(name).grad.flatten() for name in gradients]).norm()
    assert float(left) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["first.weight", "embed.weight"])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(name):
    net = model()
    optimizers = build(net, OPTIMS["muon"])
    backward(net)
    net.get_parameter(name).grad[0, 0] = torch.nan
    assert not optimizers.clip(1.0).isfinite()


def test_a_group_steps_at_every_third_step_on_the_summed_gradient():
    optim = from_defaults(
        OptimConfig,
        name="adamw",
        schedule="constant",
        warmup=0,
        adamw={"every": 3},
    )
    net, other = model(), model()
    waiting = build(net, optim)
    plain = build(other, from_defaults(OptimConfig, name="adamw", schedule="constant", warmup=0))
    for round_ in range(2):
        for step in range(3 * round_, 3 * round_ + 3):
            start = net.first.weight.detach().clone()
            train(net, waiting, [step])
            assert torch.equal(net.first.weight, start) == (step % 3 < 2)
            backward(other, step)
        plain.clip(1.0)
        plain.step()
        plain.zero_grad()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_gradients_that_wait_are_not_clipped():
    net = model()
    optimizers = build(net, from_defaults(OptimConfig, name="adamw", adamw={"every": 2}))
    backward(net)
    gradients = [p.grad.clone() for p in net.parameters()]
    for step, clipped in ((0, False), (1, True)):
        optimizers.set_schedule(step, step / 20)
        optimizers.clip(1e-4)
        same = [torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True)]
        assert not any(same) if clipped else all(same)


def test_a_parameter_has_settings_of_its_own():
    own = {
        "embed.weight": Own(lr_mult=75, decay_mult=5, betas=(0.5, 0.6)),
        "first.weight": Own(lr_mult=4, decay_mult=0),
    }
    optim = from_defaults(OptimConfig, lr=0.01, weight_decay=0.1, muon={"weight_decay": 0.2})
    net = model()
    found = {
        name: group
        for group in make_groups(net, default_roles(net), optim, own=own)
        for name in group.names
    }
    embed = found["embed.weight"]
    assert (embed.lr_mult, embed.weight_decay, embed.betas) == (75, 0.5, (0.5, 0.6))
    assert (found["first.weight"].lr_mult, found["first.weight"].weight_decay) == (4, 0)
    assert (found["second.weight"].lr_mult, found["second.weight"].weight_decay) == (1, 0.2)
    assert found["head.bias"].betas == (0.9, 0.95)


def test_adamw_uses_its_own_settings():
    optim = from_defaults(
        OptimConfig, adamw={"beta1": 0.8, "beta2": 0.9, "eps": 1e-9, "vector_lr": 0.5}
    )
    optimizers = build(model(), optim)
    for group in optimizers.adamw.param_groups:
        assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.9), 1e-9, True)
    assert isinstance(optimizers.muon, Muon)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("third.weight.momentum", (2, 2)),
        ("first.weight.exp_avg", (32, 24)),
        ("embed.weight.momentum", (40, 24)),
        ("embed.weight.exp_avg", (24, 40)),
    ],
)
def test_foreign_state_is_refused_by_key(key, shape):
    net = model()
    optimizers = build(net, OPTIMS["muon"])
    train(net, optimizers, range(1))
    state = optimizers.full_state()
    state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=key):
        optimizers.load_full_state(state)


def test_torchs_muon_warns_of_fused_weights_and_refuses_banks(caplog):
    net = model()
    net.first.weight.muon_split = (16, 16)
    with caplog.at_level(logging.WARNING):
        build(net, OPTIMS["torch"])
    assert "'first.weight' as one" in caplog.text
    net.bank = nn.Parameter(torch.zeros(2, 24, 24))
    with pytest.raises(ConfigError, match="'bank' has shape"):
        build(net, OPTIMS["torch"])


@pytest.mark.parametrize(
    ("muon", "warned"),
    [
        (from_defaults(MuonConfig, lr=0.3), True),
        (from_defaults(MuonConfig, lr=0.05, lr_scale="match_rms_adamw"), True),
        (from_defaults(MuonConfig, lr=0.05), False),
        (from_defaults(MuonConfig, lr=1e-3, lr_scale="match_rms_adamw"), False),
    ],
)
def test_unusual_rates_are_warned_of(muon, warned, caplog):
    with caplog.at_level(logging.WARNING):
        build(model(), from_defaults(OptimConfig, muon=muon))
    assert ("is large" in caplog.text) == warned


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, ["optim.muon.lr=0.0"]),
        ({"momentum_min": 0.97}, ["optim.muon.momentum_min=0.97"]),
        ({"beta2": 1.0}, ["optim.muon.beta2=1.0"]),
        ({"beta2": None, "neuron_axis": "shape"}, ["optim.muon.neuron_axis=shape"]),
        ({"wd_power": 2}, ["optim.muon.wd_power=2 has no effect"]),
        (
            {"impl": "torch", "lr_scale": "none"},
            ["orth=polar_express", "beta2=0.95", "cautious=True", "lr_scale=none"],
        ),
    ],
)
def test_wrong_settings_are_all_named(options, words):
    with pytest.raises(ConfigError) as error:
        from_defaults(MuonConfig, **options)
    assert len(error.value.problems) == len(words)
    for word, problem in zip(words, error.value.problems, strict=True):
        assert word in problem


def test_overlapping_warm_up_and_decay_are_refused():
    with pytest.raises(ConfigError, match=r"optim\.warmup=0\.7"):
        from_defaults(OptimConfig, schedule="wsd", warmup=0.7, decay_fraction=0.4)
    from_defaults(OptimConfig, schedule="cosine", warmup=0.7, decay_fraction=0.4)
