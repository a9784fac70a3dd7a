"""Laws of the model: the control without modules, alignment, masks, gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mtm_models import ADAPTER, all_logits, build
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.multi_token_adapter import targets_of
from nanozoo_core.nn.control import ControlBlock
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.testing.laws import assert_same_tensors
from nanozoo_core.testing.multi_token import (
    LARGE,
    STEP,
    VOCAB,
    check_every_parameter_gets_gradient,
    check_rows_are_independent,
    check_starts_as_the_control,
    new_document,
    plain_gradients,
    random_batch,
)
from nanozoo_core.testing.training import gradients
from nanozoo_mtm.adapter import read_by
from nanozoo_mtm.model import MTM, MLPBlock, PredictionModule

KINDS: dict[str, dict[str, Any]] = {
    "base": {},
    "mlp": {"mtp_block": "mlp"},
    "shared-norm": {"share_final_norm": True},
    "embed-first": {"concat_order": "embed_first"},
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


# -- the control -------------------------------------------------------------------------------


def test_without_modules_it_is_the_control_to_the_bit() -> None:
    batch = random_batch()
    expected, theirs = plain_gradients(build().config, batch)
    ours = build(num_mtp_modules=0, spec_draft_tokens=0)
    found = ADAPTER.training_loss(ours, batch, STEP)
    assert torch.equal(found.value, expected)
    assert found.metrics == {}
    mine = gradients(ours, found.value)
    assert_same_tensors(mine, theirs)
    assert ADAPTER.lookahead(ours.config) == 1
    assert ADAPTER.drafter(ours) is None


@kinds
def test_with_one_seed_the_main_model_starts_as_the_control(settings: dict[str, Any]) -> None:
    check_starts_as_the_control(build(moved=0, **settings))


def test_the_main_model_does_not_depend_on_modules() -> None:
    with_modules = build()
    alone = build(num_mtp_modules=0, spec_draft_tokens=0)
    weights = with_modules.state_dict()
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    batch = random_batch()
    assert torch.equal(with_modules(batch.inputs), alone(batch.inputs))
    assert torch.equal(all_logits(with_modules, batch)[0], alone(batch.inputs))
    with torch.no_grad():
        scores = [ADAPTER.nll(model, batch, Draw(0)).nats for model in (with_modules, alone)]
    assert torch.equal(*scores)


# -- the chain ---------------------------------------------------------------------------------


@kinds
def test_modules_are_the_chain_written_out(settings: dict[str, Any]) -> None:
    """Section 2.2 of 2412.19437, over the positions whose tokens the window holds."""
    model, batch = build(**settings), random_batch()
    logits = all_logits(model, batch)
    x = model.embedding(batch.inputs)
    positions = torch.arange(24)
    angles = (
        torch.outer(positions, 1e4 ** (-torch.arange(0, 16, 2) / 16)).cos(),
        torch.outer(positions, 1e4 ** (-torch.arange(0, 16, 2) / 16)).sin(),
    )
    stream = rms_norm(x)
    for block in model.blocks:
        stream = block(stream, angles)
    hidden = stream
    for depth, module in enumerate(model.modules_ahead, start=1):
        valid = 24 + 1 - depth
        assert isinstance(module, PredictionModule)
        normed = [
            F.rms_norm(part, (32,), norm.weight, 1e-6)
            for part, norm in (
                (hidden[:, :valid], module.hidden_norm),
                (model.embedding(batch.tokens[:, depth : depth + valid]), module.embed_norm),
            )
        ]
        if model.config.concat_order == "embed_first":
            normed.reverse()
        u = torch.cat(normed, -1) @ module.fuse.weight.mT
        if model.config.mtp_block == "mlp":
            g = u + F.relu(F.rms_norm(u, (32,)) @ module.block.mlp.up.weight.mT).square() @ (
                module.block.mlp.down.weight.mT
            )
        else:
            g = module.block(u, tuple(part[:valid] for part in angles))
        gain = None if model.config.share_final_norm else module.out_norm.weight
        hidden = F.rms_norm(g, (32,), gain, 1e-6)
        torch.testing.assert_close(logits[depth][:, :valid], model.head(hidden), rtol=1e-4,
                                   atol=1e-5)  # fmt: skip


def test_changes_reach_depth_k_through_the_token_k_places_on() -> None:
    """A change of token t leaves logits^0 before t and logits^k before t - k as they are, and
    moves those at t - k."""
    model, batch = build(), random_batch(2, 24, lookahead=3)
    changed = batch.tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % VOCAB
    before, after = all_logits(model, batch), all_logits(model, replace(batch, tokens=changed))
    for depth in range(3):
        assert torch.equal(before[depth][:, : 12 - depth], after[depth][:, : 12 - depth])
        assert (before[depth] - after[depth])[:, 12 - depth].abs().max() > 1e-4


# -- losses and masks --------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_the_loss_is_the_main_one_and_the_mean_of_the_modules(lookahead: int) -> None:
    model, batch = build(), random_batch(3, 12, lookahead)
    batch = replace(batch, documents=new_document(batch, 1, 7))
    logits = all_logits(model, batch)
    means = []
    for depth in range(3):
        losses = []
        for row in range(3):
            for place in range(12):
                target = place + depth + 1
                if target >= batch.tokens.shape[1]:
                    continue
                if depth > 0 and batch.documents[row, target] != batch.documents[row, place]:
                    continue
                found = logits[depth, row, place]
                losses.append(F.cross_entropy(found, batch.tokens[row, target]))
        means.append(torch.stack(losses).mean())
    loss = ADAPTER.training_loss(model, batch, Step(0, 0.5, 0))
    torch.testing.assert_close(loss.value, means[0] + 0.2 * (means[1] + means[2]) / 2)
    names = ("nll", "nll_module1", "nll_module2")
    torch.testing.assert_close(
        torch.stack([loss.metrics[name] for name in names]), torch.stack(means).detach()
    )
    assert float(loss.metrics["mtp_lambda"]) == pytest.approx(0.2)


def test_without_lookahead_the_end_of_a_window_has_no_targets() -> None:
    model = build()
    for depth in range(3):
        short, whole = random_batch(4, 24), random_batch(4, 24, lookahead=3)
        assert int(targets_of(model, short, depth + 1)[1].sum()) == 4 * (24 - depth)
        assert int(targets_of(model, whole, depth + 1)[1].sum()) == 4 * 24
    assert ADAPTER.lookahead(model.config) == 3


def test_what_stands_past_the_window_is_never_used() -> None:
    """Neither loss nor gradient changes with the token that fills in for missing ones."""
    model, batch = build(), random_batch(2, 12)
    found = gradients(model, ADAPTER.training_loss(model, batch, STEP).value)
    reads = [read_by(batch, depth) for depth in (1, 2)]
    assert torch.equal(reads[1][:, -1], torch.zeros(2, dtype=torch.int64))

    class OtherFill(Batch):
        def ahead(self, distance: int, *, across_documents: bool = False) -> tuple[Tensor, Tensor]:
            tokens, counts = super().ahead(distance, across_documents=across_documents)
            _, exists = super().ahead(distance, across_documents=True)
            return torch.where(exists, tokens, 7), counts

    other = OtherFill(batch.tokens, batch.documents, batch.rows, batch.num_rows)
    again = gradients(model, ADAPTER.training_loss(model, other, STEP).value)
    for name, gradient in found.items():
        assert torch.equal(gradient, again[name]), name


def test_modules_stop_at_a_new_document() -> None:
    model = build()
    batch = random_batch(2, 20)
    batch = replace(batch, documents=new_document(batch, 0, 10))
    for depth in (1, 2):
        _, counts = targets_of(model, batch, depth + 1)
        assert int(counts[0, :10].sum()) == 10 - depth - 1
        assert bool(counts[0, 10 : 20 - depth].all())
    across = build(cross_document_targets=True)
    assert int(targets_of(across, batch, 3)[1].sum()) == 2 * 18


def test_rows_are_independent() -> None:
    check_rows_are_independent(ADAPTER, build())


# -- gradients ---------------------------------------------------------------------------------


@kinds
def test_every_parameter_gets_gradient(settings: dict[str, Any]) -> None:
    check_every_parameter_gets_gradient(ADAPTER, build(**settings))


def test_modules_move_the_trunk_the_embedding_and_the_output() -> None:
    model, batch = build(), random_batch()
    _, plain = plain_gradients(build().config, batch)
    found = gradients(model, ADAPTER.training_loss(model, batch, STEP).value)
    for name, gradient in plain.items():
        assert (found[name] - gradient).norm() > 1e-3 * gradient.norm(), name


def test_detached_modules_leave_the_trunk_to_the_control() -> None:
    model, batch = build(mtp_detach="hidden"), random_batch()
    loss, plain = plain_gradients(build().config, batch)
    found = ADAPTER.training_loss(model, batch, STEP)
    assert torch.equal(found.metrics["nll"], loss.detach())
    mine = gradients(model, found.value)
    for name, gradient in plain.items():
        same = torch.equal(mine[name], gradient)
        assert same == name.startswith("blocks."), name
    assert all(
        gradient.any() for name, gradient in mine.items() if name.startswith("modules_ahead.")
    )


def test_at_weight_zero_the_main_model_is_the_control() -> None:
    model, batch = build(mtp_lambda_final=0.0), random_batch()
    loss, plain = plain_gradients(build().config, batch)
    found = ADAPTER.training_loss(model, batch, Step(number=9, progress=1.0, seed=0)).value
    assert torch.equal(found, loss)
    mine = gradients(model, found)
    for name, gradient in plain.items():
        torch.testing.assert_close(mine[name], gradient, rtol=0, atol=0)


# -- the start and the size --------------------------------------------------------------------


@kinds
def test_every_depth_starts_uniform(settings: dict[str, Any]) -> None:
    """ln V + var / 2, where the logits' variance is 32 * 0.001^2."""
    loss = ADAPTER.training_loss(build(moved=0, **settings), random_batch(32), STEP)
    for name in ("nll", "nll_module1", "nll_module2"):
        assert float(loss.metrics[name]) == pytest.approx(math.log(VOCAB), abs=0.01)


def test_a_fused_stream_starts_with_the_size_of_its_parts() -> None:
    torch.manual_seed(0)
    module = PredictionModule(model_config("mtm", {"vocab_size": VOCAB}))
    hidden, embedded = (10 * torch.randn(4, 16, 128) for _ in range(2))
    u = module.fuse(torch.cat([module.hidden_norm(hidden), module.embed_norm(embedded)], -1))
    assert float(u.detach().std()) == pytest.approx(1, abs=0.05)


def test_sizes_at_124m() -> None:
    with torch.device("meta"):
        model = MTM(model_config("mtm", LARGE))
    report = ADAPTER.report(model)
    control = 2 * 50304 * 768 + 12 * 12 * 768**2
    module = 14 * 768**2 + 3 * 768
    assert report["params_inference"] == control
    assert report["params"] == control + module
    flops = ADAPTER.flops_per_token(model.config, 1024)
    plain = 6 * (12 * 12 * 768**2 + 50304 * 768) + 12 * 12 * 768 * 1024
    assert flops == plain + 6 * (14 * 768**2 + 50304 * 768) + 12 * 768 * 1024


def test_roles_of_a_module() -> None:
    roles = ADAPTER.parameter_roles(build())
    own = {name: role for name, role in roles.items() if name.startswith("modules_ahead.0.")}
    vectors = {name for name, role in own.items() if role == "vector"}
    assert vectors == {f"modules_ahead.0.{name}_norm.weight" for name in ("hidden", "embed", "out")}
    assert all(role == "matrix" for name, role in own.items() if name not in vectors)


@pytest.mark.parametrize("block", ["base", "mlp"])
def test_blocks_of_modules_start_as_the_identity(block: str) -> None:
    model, u = build(moved=0, mtp_block=block), torch.randn(2, 10, 32)
    _, angles = model.stream(torch.zeros(2, 10, dtype=torch.int64))
    for module in model.modules_ahead:
        assert torch.equal(module.block(u, angles), u)


def test_blocks_of_modules() -> None:
    assert isinstance(build().modules_ahead[0].block, ControlBlock)
    assert isinstance(build(mtp_block="mlp").modules_ahead[0].block, MLPBlock)
