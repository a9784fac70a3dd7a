"""Laws of the model: the control at one token, causality, gradients, what each head reads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mtp_models import ADAPTER, all_logits, build

from nanozoo_core.config import model_config
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.optim.groups import default_roles
from nanozoo_core.testing.laws import assert_same_tensors
from nanozoo_core.testing.multi_token import (
    LARGE,
    STEP,
    VOCAB,
    check_every_parameter_gets_gradient,
    check_rows_are_independent,
    check_starts_as_the_control,
    control_of,
    plain_gradients,
    random_batch,
    random_tokens,
)
from nanozoo_core.testing.training import gradients
from nanozoo_mtp.model import MTP

TYPES: dict[str, dict[str, Any]] = {
    "block": {},
    "linear": {"head_type": "linear"},
    "shared": {"head_type": "shared", "mtp_weight_schedule": "linear_to_next"},
}
types = pytest.mark.parametrize("settings", TYPES.values(), ids=TYPES)


# -- the control -------------------------------------------------------------------------------


@pytest.mark.parametrize("head_type", TYPES)
def test_with_one_token_it_is_the_control_to_the_bit(head_type: str) -> None:
    ours, batch = build(num_mtp_tokens=1, head_type=head_type), random_batch()
    expected, theirs = plain_gradients(ours.config, batch)
    found = ADAPTER.training_loss(ours, batch, STEP).value
    assert torch.equal(found, expected)
    mine = gradients(ours, found)
    assert_same_tensors(mine, theirs)
    plain = control_of(ours.config)
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(ours(batch.inputs), plain(batch.inputs))
    assert ADAPTER.lookahead(ours.config) == 1


@types
def test_with_one_seed_all_weights_start_as_the_control_s(settings: dict[str, Any]) -> None:
    check_starts_as_the_control(build(moved=0, **settings))


def test_head_one_is_the_last_block_behind_the_trunk() -> None:
    """The score of a model of n heads is that of the control without blocks n - 1 .. 1 from the
    end."""
    ours, tokens = build(), random_tokens(2, 20)
    torch.manual_seed(0)
    short = ControlModel(ControlConfig(VOCAB, 48, 2, 32, 2, mlp_ratio=4))
    weights = ours.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()})
    assert torch.equal(ours(tokens), short(tokens))
    assert torch.equal(all_logits(ours, tokens)[0], ours(tokens))


def test_each_head_is_a_block_on_the_bare_stream() -> None:
    model, tokens = build(), random_tokens(2, 20)
    z, angles = model.trunk(tokens)
    for horizon, logits in enumerate(all_logits(model, tokens), start=1):
        expected = model.head(rms_norm(model.blocks[horizon](z, angles)))
        assert torch.equal(logits, expected)


def test_each_linear_head_adds_its_own_map_of_the_normed_stream() -> None:
    model, tokens = build(head_type="linear"), random_tokens(2, 20)
    z, _ = model.trunk(tokens)
    for number, logits in enumerate(all_logits(model, tokens)):
        moved = z if number == 0 else z + rms_norm(z) @ model.maps[number - 1].weight.mT
        torch.testing.assert_close(logits, model.head(rms_norm(moved)))


def test_linear_heads_start_as_the_first() -> None:
    model = build(moved=0, head_type="linear")
    with torch.no_grad():
        model.head.weight.normal_()
    first, *others = all_logits(model, random_tokens(2, 20))
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)


# -- causality and independence ----------------------------------------------------------------


@types
def test_no_head_sees_later_tokens(settings: dict[str, Any]) -> None:
    model, tokens = build(**settings), random_tokens(2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % VOCAB
    before, after = all_logits(model, tokens), all_logits(model, changed)
    assert len(before) == (1 if settings.get("head_type") == "shared" else 3)
    assert torch.equal(before[:, :, :12], after[:, :, :12])
    assert ((before[:, :, 12] - after[:, :, 12]).abs().amax(-1) > 1e-4).all()


@types
def test_rows_are_independent_in_logits_and_labels(settings: dict[str, Any]) -> None:
    check_rows_are_independent(ADAPTER, build(**settings))


# -- gradients ---------------------------------------------------------------------------------


@types
def test_every_parameter_gets_gradient(settings: dict[str, Any]) -> None:
    check_every_parameter_gets_gradient(ADAPTER, build(**settings))


@pytest.mark.parametrize("way", ["joint", "checkpoint", "sequential"])
def test_a_horizon_of_weight_zero_changes_no_gradient(way: str) -> None:
    """The second horizon at weight 0, against a loss written without it."""
    model = build(mtp_loss_weights=(1.0, 0.0, 0.5), head_backward=way)
    batch = random_batch()
    found = gradients(model, ADAPTER.training_loss(model, batch, STEP).value)
    logits = all_logits(model, batch.inputs)
    first = F.cross_entropy(logits[0].flatten(0, 1), batch.targets.flatten())
    third = F.cross_entropy(logits[2][:, :-2].flatten(0, 1), batch.tokens[:, 3:].flatten())
    expected = gradients(model, first + 0.5 * third)
    for name, gradient in expected.items():
        if name.startswith("blocks.2."):
            assert not found[name].any()
            assert not gradient.any()
        else:
            assert (found[name] - gradient).norm() < 1e-5 * gradient.norm(), name


def test_roles_are_the_control_s_and_maps_are_matrices() -> None:
    assert default_roles(build()) == default_roles(control_of(build().config))
    roles = ADAPTER.parameter_roles(build(head_type="linear"))
    assert roles["maps.0.weight"] == roles["maps.1.weight"] == "matrix"


# -- the start and the size --------------------------------------------------------------------


@types
def test_every_horizon_starts_uniform(settings: dict[str, Any]) -> None:
    """ln V + var / 2, where the logits' variance is 32 * 0.001^2."""
    losses = ADAPTER.training_loss(build(moved=0, **settings), random_batch(32), STEP).metrics
    assert len(losses) == 3
    for value in losses.values():
        assert float(value) == pytest.approx(math.log(VOCAB), abs=0.01)


@pytest.mark.parametrize("num_mtp_tokens", [1, 2, 4])
def test_parameters_are_those_of_a_decoder_of_as_many_blocks(num_mtp_tokens: int) -> None:
    with torch.device("meta"):
        model = MTP(model_config("mtp", LARGE | {"num_mtp_tokens": num_mtp_tokens}))
    report = ADAPTER.report(model)
    assert report["params"] == 2 * 50304 * 768 + 12 * 12 * 768**2
    idle = (num_mtp_tokens - 1) * 12 * 768**2
    assert report["params_inference"] == report["params"] - idle
    layers = 12 - num_mtp_tokens + 1
    assert report["cache_bytes_per_token"] == 2 * 4 * layers * 768
    flops = ADAPTER.flops_per_token(model.config, 1024)
    plain = 6 * (12 * 12 * 768**2 + 50304 * 768) + 12 * 12 * 768 * 1024
    assert flops == plain + (num_mtp_tokens - 1) * 6 * 50304 * 768
