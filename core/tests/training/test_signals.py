"""Ctrl-C once, twice, and while a checkpoint is being written."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core import tensor_files
from nanozoo_core.commands.train import run
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import CheckpointError, OutOfMemoryError
from nanozoo_core.machine.terminal import reported_errors
from nanozoo_core.training import checkpoint, finish, runs, trainer
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.signals import catch_signals, without_interrupts


def interrupt(times: int) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_a_block() -> None:
    done: list[str] = []
    with catch_signals() as received:
        with without_interrupts():
            interrupt(1)
            assert not received
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt), without_interrupts():  # noqa: PT012
            interrupt(3)
            done.append("written")
    assert done == ["written"]


def test_a_block_without_interrupts_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with without_interrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)


def train(corpus: Path, folder: Path, *changes: str) -> trainer.Result:
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += ["log.tensorboard=false", f"run_dir='{folder}'", "eval.bytes=300", *changes]
    return trainer.train(resolve(compose_config(words)))


def test_a_second_interrupt_leaves_at_once_and_says_what_is_there(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = trainer.Trainer.one_step

    def impatient(self: trainer.Trainer) -> Any:
        if self.state.step == 3:
            interrupt(2)
        return plain(self)

    monkeypatch.setattr(trainer.Trainer, "one_step", impatient)
    result = train(corpus, tmp_path / "run")
    assert result.signal == signal.SIGINT
    said = capsys.readouterr().out
    assert "stopped at once by a second Ctrl-C; step_000002 is its newest checkpoint" in said
    assert f"train resume={tmp_path / 'run'}" in said
    monkeypatch.setattr(trainer.Trainer, "one_step", plain)
    folder = RunFolder(tmp_path / "run")
    trainer.train(resolve(folder.read_config() | {"resume": str(folder)}))
    assert folder.is_finished


@pytest.mark.parametrize("times", [1, 2, 3])
def test_interrupts_while_a_checkpoint_is_written_leave_it_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    plain, waiting = tensor_files.write_tensors, [times]

    def interrupted(*arguments: Any) -> str:
        digest = plain(*arguments)
        if waiting:
            interrupt(waiting.pop())
        return digest

    monkeypatch.setattr(tensor_files, "write_tensors", interrupted)
    result = train(corpus, tmp_path / "run")
    assert result.signal == signal.SIGINT
    folder = RunFolder(tmp_path / "run")
    newest = folder.checkpoint_steps()[-1]
    assert newest >= 2
    assert runs.load_run(folder.path, device="cpu").state.step == newest
    names = {path.name for path in folder.checkpoints_path.iterdir()}
    assert names == {f"step_{step:06d}" for step in folder.checkpoint_steps()}


@pytest.mark.parametrize("name", ["calibrate", "make_samples"])
def test_a_second_interrupt_at_the_end_leaves_a_run_to_finish(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(finish, name, lambda *_, **__: interrupt(2))
        assert train(corpus, tmp_path / "run").signal == signal.SIGINT
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_steps()[-1] == 8
    trainer.train(resolve(folder.read_config() | {"resume": str(folder)}))
    assert folder.is_finished


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_is_closed_ends_a_run_with_its_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer.Trainer.one_step

    def hung_up(self: trainer.Trainer) -> Any:
        if self.state.step == 4:
            monkeypatch.setattr(sys, "stdout", None)
            signal.raise_signal(signal.SIGHUP)
        return plain(self)

    monkeypatch.setattr(trainer.Trainer, "one_step", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert train(corpus, tmp_path / "run").signal == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
    assert RunFolder(tmp_path / "run").checkpoint_steps()[-1] == 5


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_scheduler_is_heard(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    plain, number = trainer.Trainer.one_step, getattr(signal, name)

    def warned(self: trainer.Trainer) -> Any:
        if self.state.step == 4:
            signal.raise_signal(number)
        return plain(self)

    monkeypatch.setattr(trainer.Trainer, "one_step", warned)
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += ["log.tensorboard=false", f"run_dir='{tmp_path / 'run'}'", "eval.bytes=300"]
    with pytest.raises(SystemExit) as ended:
        run(compose_config(words))
    assert ended.value.code == 128 + number
    assert RunFolder(tmp_path / "run").checkpoint_steps()[-1] == 5
    assert f"stopped at step 5 by signal {name}; checkpoint written" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has no SIGUSR2")
def test_a_signal_of_somebody_else_reaches_him_after_the_checkpoint() -> None:
    told: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: told.append("theirs"))
    try:
        with catch_signals() as received:
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)
            assert received == [signal.SIGUSR2] * 2
            told.append("checkpoint")
        assert told == ["checkpoint", "theirs"]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as received:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert not received
    finally:
        signal.signal(signal.SIGHUP, before)


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["training_loss", "nll"])
def test_any_error_leaves_a_checkpoint_that_goes_on_to_the_same_bits(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In the middle of a step, and between two."""
    changes = ("checkpoint.every=0", "eval.every=5", "train.micro_batch_tokens=32")
    whole = RunFolder(train(corpus, tmp_path / "whole", *changes).folder)
    plain = getattr(DefaultModelAdapter, name)
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 23 or name == "nll":  # the third part of step 5
            raise RuntimeError("of our own making")
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DefaultModelAdapter, name, failing)
        with pytest.raises(RuntimeError, match="of our own making"):
            train(corpus, tmp_path / "run", *changes)
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_steps() == [5]
    trainer.train(resolve(folder.read_config() | {"resume": str(folder)}))
    for stem in ("model", "optimizer"):
        one, two = (checkpoint.read_tensors(f.latest_checkpoint(), stem) for f in (whole, folder))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_error_while_gradients_wait_leaves_no_wrong_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("of our own making")

    plain = trainer.Trainer._gradients

    def late(self: trainer.Trainer, *arguments: Any) -> Any:
        return (failing if self.state.step == 3 else plain)(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "_gradients", late)
    with pytest.raises(RuntimeError):
        train(corpus, tmp_path / "run", "checkpoint.every=0", "optim.adamw.every=2")
    assert RunFolder(tmp_path / "run").checkpoint_steps() == []


def test_a_checkpoint_that_cannot_be_written_is_tried_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def full(*_: Any) -> str:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files, "write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(corpus, tmp_path / "run")
    assert len(tries) == 1


# -- memory ---------------------------------------------------------------------------------------


def too_large(*_: Any) -> Any:
    """An exabyte, which no CPU has."""
    return torch.empty(2**58, device="cpu")


OTHER_MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.98 GB)"),
]


def test_no_memory_is_a_sentence_and_loses_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DefaultModelAdapter.training_loss

    def failing(self: Any, model: Any, batch: Any, step: Any) -> Any:
        return too_large() if step.number == 3 else plain(self, model, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(DefaultModelAdapter, "training_loss", failing)
        with pytest.raises(OutOfMemoryError, match=r"lower train\.micro_batch_tokens \(now 64\)"):
            train(corpus, tmp_path / "run", "checkpoint.every=0", "train.micro_batch_tokens=64")
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_steps() == [3]
    smaller = folder.read_config()["train"] | {"micro_batch_tokens": 32}
    trainer.train(resolve(folder.read_config() | {"resume": str(folder), "train": smaller}))
    assert folder.is_finished


def test_a_model_that_does_not_fit_is_a_sentence(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DefaultModelAdapter, "make_model", too_large)
    with pytest.raises(OutOfMemoryError, match="or the sizes of the model"):
        train(corpus, tmp_path / "run")


@pytest.mark.parametrize("error", OTHER_MEMORY_ERRORS, ids=["cuda", "python", "mps"])
def test_every_command_says_that_there_is_no_memory(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), reported_errors():
        raise error
    assert capsys.readouterr().err.startswith("error: out of memory; ")


def test_an_error_of_another_kind_is_none_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported_errors():
        raise RuntimeError("shape mismatch")
    assert "memory" not in capsys.readouterr().err
