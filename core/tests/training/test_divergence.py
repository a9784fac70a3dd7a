"""Runs that diverge: what is saved, what is kept, and which checkpoint is called good."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import NonFiniteError
from nanozoo_core.tensor_files import write_tensors
from nanozoo_core.training import checkpoint, finish, records, runs, trainer
from nanozoo_core.training.run_folder import RunFolder, read_state

Start = Callable[..., RunFolder]


@pytest.fixture
def start(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Trains eight steps, with a checkpoint at every second."""
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda _: None)

    def run(*changes: str) -> RunFolder:
        words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
        words += ["log.tensorboard=false", f"run_dir='{tmp_path / 'run'}'", "eval.bytes=300"]
        return RunFolder(trainer.train(resolve(compose_config([*words, *changes]))).folder)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def poison_losses(patch: pytest.MonkeyPatch, first_step: int) -> None:
    plain = DefaultModelAdapter.training_loss

    def poisoned(self: Any, model: Any, batch: Any, step: Any) -> Any:
        loss = plain(self, model, batch, step)
        factor = float("nan") if step.number >= first_step else 1.0
        return dataclasses.replace(loss, value=loss.value * factor)

    patch.setattr(DefaultModelAdapter, "training_loss", poisoned)


def poison_weights(patch: pytest.MonkeyPatch, at_step: int, value: float) -> None:
    def after_step(self: Any, model: Any, step: Any, optimizers: Any) -> None:
        if step.number == at_step:
            next(model.parameters()).view(-1)[-1] = value

    patch.setattr(DefaultModelAdapter, "after_step", after_step)


@pytest.mark.parametrize(("first_step", "good", "there"), [(4, 2, [2, 4]), (5, 4, [2, 4])])
def test_a_checkpoint_is_good_once_a_loss_from_it_was_finite(
    start: Start,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    first_step: int,
    good: int,
    there: list[int],
) -> None:
    poison_losses(monkeypatch, first_step)
    sentence = rf"loss is not finite at step {first_step}, before .* last good checkpoint is .*"
    with pytest.raises(NonFiniteError, match=rf"{sentence}step_00000{good}; .*run@{good} and"):
        start()
    assert folder.checkpoint_steps() == there


def test_the_last_good_checkpoint_is_kept(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_losses(monkeypatch, 4)
    with pytest.raises(NonFiniteError, match=r"run@2 and a lower optim.lr"):
        start("checkpoint.keep=1")
    assert folder.checkpoint_steps() == [2, 4]


def test_no_checkpoint_is_called_good_without_a_later_loss(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_losses(monkeypatch, 2)
    with pytest.raises(NonFiniteError, match="no checkpoint is known to be good; start again"):
        start()
    assert folder.checkpoint_steps() == [2]


def test_a_run_that_ends_well_has_a_good_checkpoint(start: Start) -> None:
    folder = start("checkpoint.keep=1")
    assert folder.checkpoint_steps() == [8]
    assert read_state(folder.checkpoint(8)).last_good_step == 8


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_weights_that_are_not_finite_are_not_saved(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, value: float, ema: float
) -> None:
    poison_weights(monkeypatch, 3, value)
    with pytest.raises(
        NonFiniteError, match=r"the model is not finite.* at step 4, which is not saved; .*run@2"
    ):
        start(f"train.ema={ema}")
    assert folder.checkpoint_steps() == [2]
    assert [path.name for path in folder.checkpoints_path.iterdir()] == ["step_000002"]


def test_a_validation_that_is_not_finite_stops_the_run_and_is_not_the_best(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = DefaultModelAdapter.nll, []

    def nll(self: Any, *arguments: Any) -> Any:
        found = plain(self, *arguments)
        asked.append(1)
        return dataclasses.replace(found, nats=found.nats * float("nan")) if asked[3:] else found

    monkeypatch.setattr(DefaultModelAdapter, "nll", nll)
    with pytest.raises(NonFiniteError, match=r"score is nan bits per byte at step \d; .*run@\d"):
        start("eval.every=1")
    assert "NaN" not in folder.metrics_path.read_text()
    newest = read_state(folder.latest_checkpoint())
    assert newest.best_bpb is not None
    assert newest.best_bpb < 9
    assert folder.checkpoint(newest.best_step or 0).is_dir()


def spoil(folder: RunFolder, stem: str) -> None:
    path = folder.latest_checkpoint()
    tensors = checkpoint.read_tensors(path, stem)
    for tensor in tensors.values():
        tensor.view(-1)[0] = torch.nan
        break
    write_tensors(path / f"{stem}.safetensors", tensors)


@pytest.mark.parametrize("stem", ["model", "ema"])
def test_weights_that_are_not_finite_are_neither_scored_nor_trained_on(
    start: Start, stem: str
) -> None:
    folder = start("train.ema=0.5", "train.stop_after=4")
    spoil(folder, stem)
    with pytest.raises(NonFiniteError, match="is not finite: 1 of the"):
        runs.load_run(folder.path, device="cpu", verify=False)
    again = {"resume": str(folder), "resume_files": "accept"}
    with pytest.raises(NonFiniteError, match="is not finite: 1 of the"):
        trainer.train(resolve(folder.read_config() | again))
