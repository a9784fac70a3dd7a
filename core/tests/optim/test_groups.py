import dataclasses

import pytest
import torch
from torch import nn

from nanozoo_core.config import AdamWConfig, OptimConfig, from_defaults
from nanozoo_core.errors import ConfigError
from nanozoo_core.optim.groups import default_roles, describe, make_groups


class Small(nn.Module):
    def __init__(self, *, tied):
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.positions = nn.Embedding(32, 24)
        self.up = nn.Linear(24, 48)
        self.norm = nn.LayerNorm(24)
        self.gate = nn.Linear(24, 4)
        self.depthwise = nn.Conv1d(48, 48, 4, groups=48)
        self.conv = nn.Conv1d(24, 32, 4)
        self.filter = nn.Parameter(torch.zeros(48, 4))
        self.bank = nn.Parameter(torch.zeros(3, 40, 24))
        self.head = nn.Linear(24, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight


ROLES = {
    "embed.weight": "embedding",
    "positions.weight": "embedding",
    "up.weight": "matrix",
    "up.bias": "vector",
    "norm.weight": "vector",
    "norm.bias": "vector",
    "gate.weight": "vector",
    "gate.bias": "vector",
    "depthwise.weight": "vector",
    "depthwise.bias": "vector",
    "conv.weight": "matrix",
    "conv.bias": "vector",
    "filter": "vector",
    "bank": "matrix",
}


def groups_of(model, **options):
    return make_groups(model, default_roles(model), from_defaults(OptimConfig, **options))


def test_roles_follow_what_a_parameter_does():
    assert default_roles(Small(tied=True)) == ROLES
    assert default_roles(Small(tied=False)) == ROLES | {"head.weight": "head"}


def test_a_head_under_another_name_is_known_by_the_output_weight():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.unembed = nn.Linear(24, 50)

        @property
        def output_weight(self):
            return self.unembed.weight

    assert default_roles(Model()) == {"unembed.weight": "head", "unembed.bias": "vector"}


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_trained_parameter_is_in_exactly_one_group(name, tied):
    model = Small(tied=tied)
    model.norm.requires_grad_(False)
    members = [id(p) for group in groups_of(model, name=name) for p in group.params]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(members) == sorted(trained)


def test_rates_and_decay_follow_the_role():
    optim = from_defaults(
        OptimConfig,
        lr=1e-3,
        weight_decay=0.1,
        adamw={"embedding_lr": 2e-3, "head_lr": 3e-3, "vector_lr": 4e-3},
        muon={"lr": 0.05, "weight_decay": 0.2},
    )
    model = Small(tied=False)
    found = {g.name: g for g in make_groups(model, default_roles(model), optim)}
    assert {n: (g.optimizer, g.lr, g.weight_decay) for n, g in found.items()} == {
        "matrix": ("muon", 0.05, 0.2),
        "embedding": ("adamw", 2e-3, 0.0),
        "head": ("adamw", 3e-3, 0.1),
        "vector": ("adamw", 4e-3, 0.0),
    }
    optim = dataclasses.replace(optim, name="adamw", adamw=from_defaults(AdamWConfig))
    found = {g.name: g for g in make_groups(model, default_roles(model), optim)}
    assert {n: (g.optimizer, g.lr, g.weight_decay) for n, g in found.items()} == {
        "matrix": ("adamw", 1e-3, 0.1),
        "embedding": ("adamw", 1e-3, 0.0),
        "head": ("adamw", 1e-3, 0.1),
        "vector": ("adamw", 1e-3, 0.0),
    }


def test_multipliers_make_groups_of_their_own():
    model = Small(tied=True)
    groups = make_groups(
        model, default_roles(model), from_defaults(OptimConfig), lr_multipliers={"up.weight": 4.0}
    )
    matrices = {g.name: (g.names, g.lr_mult) for g in groups if g.optimizer == "muon"}
    assert matrices == {"matrix x4": (["up.weight"], 4.0), "matrix": (["bank", "conv.weight"], 1.0)}


def refused(model, roles, **options):
    with pytest.raises(ConfigError) as error:
        make_groups(model, roles, from_defaults(OptimConfig), **options)
    return error.value.problems


def test_a_parameter_without_role_is_named():
    roles = {k: v for k, v in ROLES.items() if k != "up.bias"}
    (problem,) = refused(Small(tied=True), roles)
    assert "'up.bias' is in no group" in problem


def test_a_parameter_with_two_roles_is_named():
    (problem,) = refused(Small(tied=True), ROLES | {"head.weight": "head"})
    assert "'head.weight' is in two groups" in problem
    assert "'embed.weight' with role embedding" in problem


def test_unknown_names_and_roles_are_reported_together():
    roles = ROLES | {"up.wait": "matrix", "up.weight": "matrices"}
    problems = refused(Small(tied=True), roles, lr_multipliers={"bnak": 2.0})
    assert len(problems) == 3
    assert "did you mean 'up.weight'?" in problems[0]
    assert "did you mean 'bank'?" in problems[1]
    assert "unknown role 'matrices'" in problems[2]


def test_what_muon_cannot_update_is_named():
    model = Small(tied=True)
    model.up.weight.muon_split = (40, 9)
    roles = ROLES | {"norm.weight": "matrix", "up.weight": "matrix"}
    problems = refused(model, roles)
    assert any("'norm.weight' cannot have the role matrix" in p for p in problems)
    assert any("muon_split=(40, 9) does not cut 48 rows" in p for p in problems)


def test_table_counts_every_parameter():
    model = Small(tied=False)
    lines = describe(groups_of(model)).splitlines()
    counts = [int(line.split()[3].replace(",", "")) for line in lines[1:]]
    assert sum(counts) == sum(p.numel() for p in model.parameters())
    assert len({len(line) for line in lines}) == 1
