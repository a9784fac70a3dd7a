"""Targets, masks, the three ways to the gradient, and what each of them holds in memory."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mtp_models import ADAPTER, all_logits, build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanozoo_core.contract import Batch, Draw
from nanozoo_core.machine.device import autocast
from nanozoo_core.multi_token_adapter import targets_of
from nanozoo_core.testing.multi_token import STEP, VOCAB, new_document, random_batch, random_tokens
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.training import gradients
from nanozoo_mtp.losses import token_losses
from nanozoo_mtp.model import MTP

WAYS = ("joint", "checkpoint", "sequential")
SHARED = {"head_type": "shared", "mtp_weight_schedule": "linear_to_next"}


def by_hand(model: MTP, batch: Batch) -> list[Tensor]:
    """Every L_i by plain torch, position by position."""
    length = batch.inputs.shape[1]
    logits = all_logits(model, batch.inputs)
    logits = logits.expand(model.config.num_mtp_tokens, -1, -1, -1)
    means = []
    for horizon in range(1, model.config.num_mtp_tokens + 1):
        losses = []
        for row, document in enumerate(batch.documents):
            for place in range(length):
                target = place + horizon
                if target >= batch.tokens.shape[1]:
                    continue
                if horizon > 1 and document[target] != document[place]:
                    continue
                found = logits[horizon - 1, row, place]
                losses.append(F.cross_entropy(found, batch.tokens[row, target]))
        means.append(torch.stack(losses).mean())
    return means


# -- targets and masks -------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"head_type": "linear"}, SHARED], ids=str)
def test_losses_are_those_written_out(settings: dict[str, Any], lookahead: int) -> None:
    model, batch = build(**settings), random_batch(3, 12, lookahead)
    documents = new_document(batch, 1, 7)
    batch = replace(batch, documents=documents)
    loss = ADAPTER.training_loss(model, batch, STEP)
    expected = torch.stack(by_hand(model, batch))
    found = torch.stack(list(loss.metrics.values()))
    assert list(loss.metrics) == ["nll", "nll_ahead2", "nll_ahead3"]
    torch.testing.assert_close(found, expected.detach())
    weights = torch.tensor(model.config.loss_weights(0.0))
    torch.testing.assert_close(loss.value, expected @ weights)


@pytest.mark.parametrize("settings", [{}, SHARED], ids=["block", "shared"])
def test_gradients_are_those_of_losses_written_out(settings: dict[str, Any]) -> None:
    model, batch = build(dtype=torch.float64, **settings), random_batch(2, 10)
    weights = torch.tensor(model.config.loss_weights(0.0))
    found = gradients(model, ADAPTER.training_loss(model, batch, STEP).value)
    expected = gradients(model, torch.stack(by_hand(model, batch)) @ weights.double())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-6 * gradient.norm(), name  # float32 weights


def test_without_lookahead_the_end_of_a_window_has_no_targets() -> None:
    model = build()
    for horizon in (1, 2, 3):
        short, whole = random_batch(4, 24), random_batch(4, 24, lookahead=3)
        assert int(targets_of(model, short, horizon)[1].sum()) == 4 * (24 - horizon + 1)
        assert int(targets_of(model, whole, horizon)[1].sum()) == 4 * 24
    assert ADAPTER.lookahead(model.config) == 3


def test_tokens_behind_a_new_document_are_no_targets() -> None:
    """The document of the first row ends with token 9; head 1 alone looks across."""
    model = build()
    batch = random_batch(2, 20)
    documents = new_document(batch, 0, 10)
    changed = batch.tokens.clone()
    changed[0, 10:13] = (changed[0, 10:13] + 1) % VOCAB
    before = token_losses(model, replace(batch, documents=documents))
    after = token_losses(model, replace(batch, tokens=changed, documents=documents))
    for horizon in (1, 2, 3):
        _, counts = targets_of(model, replace(batch, documents=documents), horizon)
        ended = counts[0, :10].clone()
        expected = 10 if horizon == 1 else 10 - horizon
        assert int(ended.sum()) == expected
        same = before[horizon - 1][0, :10][ended] == after[horizon - 1][0, :10][ended]
        assert same.all() == (horizon > 1)


def test_documents_are_crossed_on_request() -> None:
    model = build(cross_document_targets=True)
    batch = random_batch(2, 20)
    documents = new_document(batch, 0, 10)
    _, counts = targets_of(model, replace(batch, documents=documents), 3)
    assert int(counts.sum()) == 2 * 18


def test_a_target_belongs_to_one_position_of_each_horizon() -> None:
    """Changing x_s as a label alone moves l_i at t = s - i and nothing else."""
    model, batch = build(), random_batch(1, 20)
    changed = batch.tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % VOCAB  # behind all inputs
    pairs = zip(token_losses(model, batch), token_losses(model, replace(batch, tokens=changed)),
                strict=True)  # fmt: skip
    for horizon, (before, after) in enumerate(pairs, start=1):
        assert (before != after)[0].nonzero()[:, 0].tolist() == [20 - horizon]


def test_the_score_is_head_one_s() -> None:
    model, batch = build().eval(), random_batch()
    losses = F.cross_entropy(
        model(batch.inputs).flatten(0, 1), batch.targets.flatten(), reduction="none"
    )
    expected = losses.unflatten(0, batch.targets.shape).sum(1).double()
    with torch.no_grad():
        torch.testing.assert_close(ADAPTER.nll(model, batch, Draw(0)).nats, expected.detach())


# -- three ways to the gradient ----------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"head_type": "linear"}], ids=["block", "linear"])
def test_all_ways_give_the_same_gradients(settings: dict[str, Any]) -> None:
    """Summed over three micro-batches at a third each."""
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for way in WAYS:
        model = build(head_backward=way, mtp_loss_weights=(1.0, 0.7, 0.3), **settings)
        total = torch.zeros(())
        for seed in range(3):
            loss = ADAPTER.training_loss(model, random_batch(seed=seed), STEP).value
            (loss / 3).backward()
            total += loss.detach() / 3
        found[way] = total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    expected_loss, expected = found["joint"]
    for way in WAYS[1:]:
        loss, ours = found[way]
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (ours[name] - gradient).norm() < 1e-5 * gradient.norm(), (way, name)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_gives_about_the_same_gradients(way: str) -> None:
    """Products are rounded to 8 bits: a few parts in a hundred of a gradient's norm."""
    model, batch = build(head_backward=way), random_batch()
    expected = gradients(model, ADAPTER.training_loss(model, batch, STEP).value)
    with autocast(torch.device("cpu"), torch.bfloat16):
        loss = ADAPTER.training_loss(model, batch, STEP).value
    found = gradients(model, loss)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_without_gradient_no_way_makes_any() -> None:
    batch = random_batch()
    with torch.no_grad():
        losses = [
            ADAPTER.training_loss(build(head_backward=way), batch, STEP).value for way in WAYS
        ]
    assert not any(loss.requires_grad for loss in losses)
    assert len({float(loss) for loss in losses}) == 1


def test_gradients_made_on_the_way_are_handed_over_once() -> None:
    model = build(head_backward="sequential")
    loss = ADAPTER.training_loss(model, random_batch(), STEP).value
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="makes its gradients once"):
        loss.backward()


def test_hooks_on_parameters_see_one_whole_gradient() -> None:
    """As data-parallel training needs: once per parameter, after all heads."""
    model = build(head_backward="sequential")
    seen: dict[str, int] = {}
    for name, parameter in model.named_parameters():

        def note(_parameter: Tensor, name: str = name) -> None:
            seen[name] = seen.get(name, 0) + 1

        parameter.register_post_accumulate_grad_hook(note)
    ADAPTER.training_loss(model, random_batch(), STEP).value.backward()
    assert seen == dict.fromkeys(dict(model.named_parameters()), 1)


# -- memory ------------------------------------------------------------------------------------


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made under this mode hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.note(leaf.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.held -= size


def peak_of_a_step(**settings: Any) -> int:
    model = build(vocab_size=4096, num_layers=5, **settings)
    count = model.config.num_mtp_tokens
    batch = batch_of(random_tokens(4, 32 + count, vocab_size=4096), lookahead=count)
    with PeakBytes() as memory:
        ADAPTER.training_loss(model, batch, STEP).value.backward()
    return memory.peak


def test_memory_of_many_heads() -> None:
    """Logits are never held for all heads, so what grows is the gradient of U: with joint there is
    one for each head; the other ways hold the sum and the newest."""
    one = peak_of_a_step(num_mtp_tokens=1)
    gradient = 4096 * 32 * 4
    grown = {way: peak_of_a_step(num_mtp_tokens=4, head_backward=way) - one for way in WAYS}
    assert grown["joint"] > 3 * gradient
    assert grown["checkpoint"] < 0.1 * one
    assert grown["sequential"] < 0.1 * one
