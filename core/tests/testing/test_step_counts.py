"""What is counted of a step, on models made for it, and what a test says when the counts change."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Loss, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.testing import remake_counts
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.step_counts import (
    REMADE,
    Watch,
    flops,
    hold_to_table,
    micro_steps,
    watch_step,
)
from nanozoo_core.training.parts import Part

DIM = 8


class Bigram(nn.Module):
    """Embedding, a layer, and a head that makes all logits at once."""

    def __init__(self, vocab_size: int, *, by_hand: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, DIM)
        self.layer = nn.Linear(DIM, DIM, bias=False)
        self.head = nn.Linear(DIM, vocab_size, bias=False)
        self.by_hand = by_hand

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.by_hand:  # halves of a weight, which autocast's cache does not know
            x = x + F.linear(x, self.layer.weight[: DIM // 2]).repeat(1, 1, 2)
            x = x + F.linear(x, self.layer.weight[DIM // 2 :]).repeat(1, 1, 2)
        else:
            x = x + self.layer(x)
        return self.head(x)


class PlainLoss(DefaultModelAdapter):
    def __init__(self) -> None:
        super().__init__(object, Bigram)

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        logits = model(batch.inputs).flatten(0, 1)
        return Loss(F.cross_entropy(logits.float(), batch.targets.flatten()))


def case(
    vocab_size: int, num_windows: int, length: int, num_parts: int = 1, **options: bool
) -> tuple[DefaultModelAdapter, nn.Module, list[Part]]:
    model = Bigram(vocab_size, **options)
    batch = batch_of(torch.randint(vocab_size, (num_parts * num_windows, length + 1)))
    parts: list[Part] = []
    for step in micro_steps(num_parts):
        first = step.micro_step * num_windows
        parts.append((batch.take(slice(first, first + num_windows)), step))
    return PlainLoss(), model, parts


def test_flops_are_six_per_weight_and_token_less_those_of_the_first_gradient() -> None:
    counted = flops(*case(11, 3, 5, num_parts=2))
    assert counted == 6 * 2 * 3 * 5 * (DIM * DIM + 11 * DIM)


def test_a_layer_is_cast_once_in_a_step_of_two_parts() -> None:
    watch = watch_step(*case(11, 3, 5, num_parts=2), torch.bfloat16)
    assert (watch.num_casts, watch.cast_again) == (2, {})


def test_parts_of_a_weight_that_are_cast_in_each_part_of_a_batch_are_told() -> None:
    watch = watch_step(*case(11, 3, 5, num_parts=2, by_hand=True), torch.bfloat16)
    assert watch.num_casts == 5  # two halves, twice, and the head once
    assert watch.cast_again == {"layer.weight": 2.0}
    places = watch.told_places()
    assert len(places) == 2
    assert all("layer.weight at test_step_counts.py:" in place for place in places)


def test_in_float32_nothing_is_cast() -> None:
    assert watch_step(*case(11, 3, 5), torch.float32).num_casts == 0


def test_a_copy_in_the_same_precision_is_no_cast() -> None:
    model = nn.Linear(3, 2)
    with Watch(model) as watch, torch.no_grad():
        torch.empty(2, 3).copy_(model.weight)
        assert watch.num_casts == 0
        torch.empty(2, 3, dtype=torch.bfloat16).copy_(model.weight)
    assert watch.num_casts == 1


def test_all_logits_at_once_are_large() -> None:
    """The logits, their logarithms, and the gradients of both."""
    watch = watch_step(*case(2**14 + 1, 8, 64), torch.float32)
    whole = 8 * 64 * (2**14 + 1) * 4
    assert watch.large_bytes == 4 * whole
    assert any("test_step_counts.py:" in place for place in watch.told_places())
    assert any("the backward of an op" in place for place in watch.told_places())


def test_views_and_writes_in_place_take_no_memory() -> None:
    x = torch.zeros(2**23 + 1)
    with Watch(nn.Linear(1, 1)) as watch:
        x.view(1, -1)[:, 1:].add_(1)
        torch.add(x, 1, out=x)
        assert watch.large_bytes == 0
        x.clone()
    assert watch.large_bytes == 4 * (2**23 + 1)


def test_just_32_mib_are_not_large() -> None:
    with Watch(nn.Linear(1, 1)) as watch:
        torch.zeros(2**23)
    assert watch.large_bytes == 0


# -- the table ------------------------------------------------------------------------------------


def request_in(folder: Path, stash: pytest.Stash) -> Any:
    return SimpleNamespace(
        path=folder / "test_contract.py",
        cls=type("TestContract", (), {}),
        config=SimpleNamespace(stash=stash),
    )


def test_a_changed_count_names_both_numbers_and_the_command(tmp_path: Path) -> None:
    table = {"TestContract": {"flops": 10, "weight_casts": 3}}
    (tmp_path / "step_counts.json").write_text(json.dumps(table), encoding="utf-8")
    request = request_in(tmp_path, pytest.Stash())
    hold_to_table(request, {"flops": 10, "weight_casts": 3}, [])
    hold_to_table(request, {"flops": 10}, [])
    with pytest.raises(AssertionError) as error:
        hold_to_table(request, {"flops": 10, "weight_casts": 4}, ["head.weight at model.py:7"])
    text = str(error.value)
    assert "weight_casts 3 -> 4" in text
    assert "flops" not in text
    assert "python -m nanozoo_core.testing.remake_counts" in text
    assert "head.weight at model.py:7" in text


def test_a_class_that_the_table_does_not_know_fails(tmp_path: Path) -> None:
    (tmp_path / "step_counts.json").write_text('{"TestOther": {"flops": 1}}', encoding="utf-8")
    with pytest.raises(AssertionError, match="flops None -> 1"):
        hold_to_table(request_in(tmp_path, pytest.Stash()), {"flops": 1}, [])


def test_without_a_table_nothing_is_compared(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="remake_counts"):
        hold_to_table(request_in(tmp_path, pytest.Stash()), {"flops": 1}, [])


def test_while_tables_are_remade_they_are_filled(tmp_path: Path) -> None:
    stash = pytest.Stash()
    stash[REMADE] = {}
    request = request_in(tmp_path, stash)
    hold_to_table(request, {"flops": 1}, [])
    hold_to_table(request, {"graph_breaks": 2}, [])
    expected = {"TestContract": {"flops": 1, "graph_breaks": 2}}
    assert stash[REMADE] == {tmp_path / "step_counts.json": expected}


TESTS = """
from nanozoo_core.testing.step_counts import hold_to_table

class TestContract:
    def test_counts_of_the_table(self, request):
        hold_to_table(request, {"flops": 5}, [])

    def test_others(self):
        raise AssertionError
"""


def test_the_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_contract.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["remake_counts", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        remake_counts.main()
    assert end.value.code == 0
    written = json.loads((tmp_path / "step_counts.json").read_text(encoding="utf-8"))
    assert written == {"TestContract": {"flops": 5}}
