"""Ctrl-C once, twice, and while a checkpoint is being written."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core import tensor_files
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.training import finish, runs, trainer
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
