"""Which folder a run writes to, and that no other run writes there meanwhile.

Importing this module loads no torch, so that `train` can look for runs at once.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from nanozoo_core.errors import CheckpointError, ConfigError, NanozooError
from nanozoo_core.training.run_folder import LOCK_NAME, RunFolder

if TYPE_CHECKING:
    from nanozoo_core.machine.ranks import Ranks

RUNS = Path("runs")  # where runs without run_dir go, one folder per model


class Claim:
    """A run's folder, held against other processes until it is released or this one ends."""

    def __init__(self, folder: RunFolder, lock: FileLock | None) -> None:
        self.folder, self._lock = folder, lock
        self._identity = None if lock is None else _identity(folder.path)

    def check_in_place(self) -> None:
        """Raises: CheckpointError when the folder is not the one that was claimed any more."""
        if self._lock is not None and _identity(self.folder.path) != self._identity:
            raise CheckpointError(
                f"{self.folder} has been renamed or removed while the run trained in it, so that "
                f"nothing more is written; move it back, and go on from its last checkpoint with: "
                f"train resume={self.folder}"
            )

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.release()
            raise


def _identity(path: Path) -> tuple[int, int] | None:
    """Of a folder, wherever it lies; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def claim_folder(resumed: RunFolder | None, run_dir: str | None, model: str, ranks: Ranks) -> Claim:
    """The folder of the run to go on with, or a new one, the same on every rank; rank 0 holds it.

    Raises: on every rank, ConfigError when run_dir already holds something; CheckpointError when
        the folder cannot be written, or another process trains in it.
    """
    claim, problem = None, None
    if ranks.is_main:
        try:
            claim = _hold(resumed) if resumed is not None else _claim_new(run_dir, model)
        except NanozooError as error:
            problem = error
    folder, problem = ranks.broadcast((claim and claim.folder, problem))
    if problem is not None:
        raise problem
    return claim or Claim(folder, None)


def _claim_new(run_dir: str | None, model: str) -> Claim:
    path = Path(run_dir) if run_dir is not None else RUNS / model
    with _write_errors(path):
        if run_dir is None:
            return _hold(RunFolder(make_folder(path)))
        path.mkdir(parents=True, exist_ok=True)
    _check_free(path)
    claim = _hold(RunFolder(path))
    with claim.released_on_error(), _write_errors(path):
        _check_free(path)  # once more: a run that held it before may have ended
        claim.folder.clear()
    return claim


def make_folder(parent: Path) -> Path:
    """A folder that did not exist, named after the time; the second of a second has a suffix."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}_{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")


def _check_free(path: Path) -> None:
    is_empty = all(child.name == LOCK_NAME for child in path.iterdir())
    if not (is_empty or RunFolder(path).is_barely_begun):
        raise ConfigError(
            f"run_dir={path} is not empty; choose another, or continue that run with resume={path}"
        )


def _hold(folder: RunFolder) -> Claim:
    lock = FileLock(folder.path / LOCK_NAME)
    try:
        with _write_errors(folder.path):
            lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"another process is training in {folder}; wait for it, or stop it first"
        ) from None
    return Claim(folder, lock)


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise CheckpointError(
            f"the run folder {path} cannot be written: {error.strerror or error}"
        ) from error


def newest_unfinished(model: str) -> RunFolder | None:
    """The run of a model that `resume=auto` continues: the newest that has a checkpoint but no
    result, and in which no other process trains. None where there is none."""
    runs = [RunFolder(path) for path in (RUNS / model).glob("*")]
    unfinished = [run for run in runs if run.has_checkpoint and not run.is_finished]
    for run in sorted(unfinished, key=lambda run: run.path.stat().st_mtime, reverse=True):
        try:
            _hold(run).release()
        except CheckpointError:
            continue
        return run
    return None
