"""The end of a run: its best checkpoint, and what is left to do after a kill at any point of it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.errors import CheckpointError
from nanozoo_core.training import checkpoint, finish, records, trainer
from nanozoo_core.training.run_folder import RunFolder

Words = Callable[..., list[str]]


class Killed(BaseException):
    """Stands for a kill: nothing catches it, and nothing tidies up."""


@pytest.fixture
def words(corpus: Path, tmp_path: Path) -> Words:
    """A toy run of four steps, in a folder of that name."""

    def make(name: str, *changes: str) -> list[str]:
        return [
            *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
            *("log.tensorboard=false", f"run_dir='{tmp_path / name}'", "train.max_steps=4"),
            *("eval.bytes=300", *changes),
        ]

    return make


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 8)


def run(words: list[str]) -> RunFolder:
    return RunFolder(trainer.train(resolve(compose_config(words))).folder)


def resume(folder: RunFolder, **changes: Any) -> trainer.Result:
    return trainer.train(resolve(folder.read_config() | {"resume": str(folder)} | changes))


def same_outcome(one: RunFolder, two: RunFolder) -> bool:
    """Whether two runs have equal weights, rows, scores and texts."""

    def rows(folder: RunFolder) -> list[dict[str, Any]]:
        timed = ("seconds", "tokens_per_second")
        return [{k: v for k, v in r.items() if k not in timed} for r in folder.read_metrics()]

    first, second = (checkpoint.read_tensors(r.latest_checkpoint(), "model") for r in (one, two))
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
        and rows(one) == rows(two)
        and one.read_result()["val_bpb"] == two.read_result()["val_bpb"]
        and one.read_samples() == two.read_samples()
        and one.loss_picture_path.is_file() == two.loss_picture_path.is_file()
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (finish, "calibrate"),
        (trainer, "evaluate"),
        (checkpoint, "renew"),
        (finish, "make_samples"),
        (records, "plot_losses"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trained_run_that_was_killed_is_finished_by_resuming(
    words: Words, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any, name: str
) -> None:
    """With no checkpoint but the last, whose training is not done again."""
    alone = ("checkpoint.every=0",)
    folder = RunFolder(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(words("killed", *alone))
    if module is records:  # the plot comes after the result
        folder.result_path.unlink()
    assert folder.checkpoint_steps() == [4]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "one_step", lambda _: pytest.fail("trained again"))
        resume(folder)
    assert same_outcome(folder, run(words("whole", *alone)))
    with pytest.raises(CheckpointError, match="already reached its budget"):
        resume(folder)


def test_a_signal_in_the_last_validation_leaves_a_run_to_finish(
    words: Words,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = trainer.evaluate

    def interrupted(*arguments: Any, **rest: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return plain(*arguments, **rest)

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        result = trainer.train(resolve(compose_config(words("run"))))
    said = capsys.readouterr().out
    assert result.signal == signal.SIGTERM
    assert "all 4 steps are trained" in said
    assert "SIGTERM" in said
    assert f"train resume={folder}" in said
    assert not folder.is_finished
    resume(folder)
    assert same_outcome(folder, run(words("whole")))


def test_a_stop_at_a_validation_does_not_leave_it_out(words: Words) -> None:
    changes = ("eval.every=1",)
    folder = run(words("split", *changes, "train.stop_after=2"))
    assert [row["step"] for row in folder.read_metrics() if "val_bpb" in row] == [1]
    resume(folder)
    assert same_outcome(folder, run(words("whole", *changes)))


def test_a_finished_run_trains_on_with_a_larger_budget(words: Words) -> None:
    folder = run(words("run"))
    larger = folder.read_config()["train"] | {"max_steps": 6, "stop_after": 5}
    resume(folder, train=larger)
    assert not folder.is_finished
    resume(folder)
    assert folder.read_result()["steps"] == 6


def score_as(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """The validations of the next run give these bits per byte, one after the other."""
    plain, left = trainer.evaluate, list(scores)

    def evaluate(*arguments: Any, **rest: Any) -> Any:
        return dataclasses.replace(plain(*arguments, **rest), bits_per_byte=left.pop(0))

    monkeypatch.setattr(trainer, "evaluate", evaluate)


@pytest.mark.parametrize(("last", "best", "kept"), [(3.5, 2, [2, 4]), (2.0, 4, [4])])
def test_the_best_checkpoint_is_that_of_the_best_score(
    words: Words, monkeypatch: pytest.MonkeyPatch, last: float, best: int, kept: list[int]
) -> None:
    """Whether or not it was at a step of checkpoint.every."""
    score_as(monkeypatch, 5.0, 3.0, 4.0, last)
    changes = ("eval.every=1", "checkpoint.every=3", "checkpoint.keep=1")
    folder = run(words("run", *changes))
    assert checkpoint.best_whole(folder, ("model",)) == best
    assert folder.checkpoint_steps() == kept


def test_the_best_of_before_is_kept_by_a_resumed_run(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_as(monkeypatch, 3.0, 4.0, 4.5, 5.0)
    changes = ("eval.every=1", "checkpoint.every=1", "checkpoint.keep=1")
    folder = run(words("run", *changes, "train.stop_after=2"))
    resume(folder)
    assert checkpoint.best_whole(folder, ("model",)) == 1
    assert folder.checkpoint_steps() == [1, 4]
