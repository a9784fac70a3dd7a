"""A disk that fills, or a kill, at any write of a run: nothing is lost, and a command goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.data import cache
from nanozoo_core.errors import NanozooError
from nanozoo_core.testing.full_disk import Killed, full_disk
from nanozoo_core.training import checkpoint, finish, records, trainer
from nanozoo_core.training.run_folder import RunFolder


def words(corpus: Path, folder: Path, *changes: str) -> list[str]:
    """A toy run of three steps, with checkpoints of steps 2 and 3."""
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("log.tensorboard=false", "eval.bytes=300", "eval.every=2", "train.max_steps=3"),
        *(f"run_dir='{folder}'", *changes),
    ]


def begin(corpus: Path, folder: Path, *changes: str) -> RunFolder:
    return RunFolder(trainer.train(resolve(compose_config(words(corpus, folder, *changes)))).folder)


def resume(folder: RunFolder) -> None:
    """Goes on with a setting that is not the stored one, so that config.yaml is written again."""
    settings = folder.read_config() | {"resume": str(folder)}
    settings["checkpoint"] = settings["checkpoint"] | {"keep": 4}
    trainer.train(resolve(settings))


@pytest.fixture(scope="module", autouse=True)
def short_ends() -> Iterator[None]:
    """Runs end with short samples and a picture that is quickly drawn."""

    def plot(folder: RunFolder) -> None:
        with records.whole_file(folder.loss_picture_path) as file:
            file.write(b"picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "SAMPLE_TOKENS", 2)
        patch.setattr(records, "plot_losses", plot)
        # No records of digests, whose number depends on the age of the files.
        patch.setattr(cache, "SETTLED_NS", 10**20)
        yield


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return begin(corpus, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return begin(corpus, tmp_path_factory.mktemp("runs") / "stopped", "train.stop_after=2")


def outcome(folder: RunFolder) -> dict[str, Any]:
    """All that a finished run has made, but for what takes time."""
    timed = ("seconds", "train_seconds", "tokens_per_second", "peak_memory_bytes")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in folder.read_metrics()]
    result = {k: v for k, v in folder.read_result().items() if k not in timed}
    weights = checkpoint.read_tensors(folder.latest_checkpoint(), "model")
    names = {p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*") if p.is_file()}
    return {
        "rows": rows,
        "result": result,
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
        "samples": folder.read_samples(),
        "files": names,
    }


@pytest.mark.parametrize("kills", [False, True], ids=["full", "killed"])
def test_a_resumed_run_loses_nothing(
    stopped: RunFolder,
    whole: RunFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kills: bool,
) -> None:
    resume(RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "first"))))  # fills the cache
    with full_disk() as disk:
        resume(RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "plain"))))
    assert disk.writes[0] == "config.yaml"  # what is as it was is not written again
    for room in disk.turning_points():
        folder = RunFolder(Path(shutil.copytree(stopped.path, tmp_path / f"run_{room}")))
        if disk.writes[room] == "loss.png" and not kills:
            with full_disk(room):
                resume(folder)  # the picture alone is left out, with a warning
            assert folder.is_finished
            assert "loss.png cannot be written: No space left" in caplog.text
            continue
        with full_disk(room, kills=kills), pytest.raises((NanozooError, Killed)) as found:
            resume(folder)
        assert kills or re.search("No space left on device.*train resume=", str(found.value))
        assert not folder.is_finished or disk.writes[room] == "loss.png"
        if not folder.is_finished:
            resume(folder)
            assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("kills", [False, True], ids=["full", "killed"])
def test_the_same_command_begins_anew_or_the_run_goes_on(
    corpus: Path, whole: RunFolder, tmp_path: Path, kills: bool
) -> None:
    begin(corpus, tmp_path / "first")  # fills the cache
    with full_disk() as disk:
        begin(corpus, tmp_path / "plain")
    names = disk.writes
    first_checkpoint = names.index("state.json")
    # Kills by turns at the two commands that may follow.
    points = [point for point in disk.turning_points() if point <= first_checkpoint + 1]
    for number, room in enumerate(points):
        folder = RunFolder(tmp_path / f"run_{room}")
        with full_disk(room, kills=kills), pytest.raises((NanozooError, Killed)):
            begin(corpus, folder.path)
        if folder.has_checkpoint:
            assert room > first_checkpoint
            with pytest.raises(NanozooError, match="is not empty"):
                begin(corpus, folder.path)
        if folder.has_checkpoint or (number % 2 and folder.is_run):
            resume(folder)
        else:
            begin(corpus, folder.path)
        assert outcome(folder) == outcome(whole)


def test_a_run_that_goes_on_as_it_was_rewrites_nothing(stopped: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "run")))
    paths = (folder.config_path, folder.data_path, folder.metrics_path)
    before = [(path.stat().st_ino, path.read_bytes()) for path in paths]
    trainer.train(resolve(folder.read_config() | {"resume": str(folder)}))
    for path, (inode, content) in zip(paths, before, strict=True):
        assert path.stat().st_ino == inode
        assert path.read_bytes().startswith(content)
