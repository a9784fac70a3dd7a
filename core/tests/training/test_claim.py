"""Folders of runs that are started together."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.errors import CheckpointError, ConfigError, NanozooError
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training import claim, trainer
from nanozoo_core.training.claim import Claim, claim_folder, newest_unfinished
from nanozoo_core.training.run_folder import RunFolder

AT_ONCE = 8


def claim_new(run_dir: Path | None = None) -> Claim:
    return claim_folder(None, None if run_dir is None else str(run_dir), "toy", Ranks())


def hold_in_a_process(folder: str, is_held: Event) -> None:
    kept = claim_folder(None, folder, "toy", Ranks())
    assert kept.folder.path == Path(folder)
    is_held.set()
    time.sleep(600)


def at_once(run_dir: Path | None) -> tuple[list[Claim], list[NanozooError]]:
    """What becomes of several claims made at the same moment."""
    barrier = threading.Barrier(AT_ONCE)
    claims: list[Claim] = []
    errors: list[NanozooError] = []

    def one() -> None:
        barrier.wait()
        try:
            claims.append(claim_new(run_dir))
        except NanozooError as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return claims, errors


def test_runs_of_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claim.time, "strftime", lambda _: "2030-01-02_03-04-05")
    claims, errors = at_once(None)
    assert not errors
    stamp = "2030-01-02_03-04-05"
    names = {stamp} | {f"{stamp}_{number}" for number in range(2, AT_ONCE + 1)}
    assert {c.folder.path.name for c in claims} == names


def test_one_of_several_runs_gets_the_run_dir(tmp_path: Path) -> None:
    claims, errors = at_once(tmp_path / "run")
    assert len(claims) == 1
    assert len(errors) == AT_ONCE - 1
    assert all("another process is training in" in str(error) for error in errors)


def test_a_folder_is_free_after_its_run(tmp_path: Path) -> None:
    claim_new(tmp_path / "run").release()
    first = claim_new(tmp_path / "run")
    (first.folder.path / "config.yaml").write_text("")
    first.folder.checkpoint(2).mkdir(parents=True)
    first.release()
    with pytest.raises(ConfigError, match="is not empty"):
        claim_new(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["result.json", "notes.txt", "aside_1_step_000002", "checkpoints/aside_1_step_000002"]
)
def test_a_folder_with_anything_of_value_is_not_begun_anew(tmp_path: Path, name: str) -> None:
    first = claim_new(tmp_path / "run")
    (first.folder.path / "config.yaml").write_text("model: toy")
    first.folder.checkpoints_path.mkdir()
    (first.folder.path / name).mkdir()
    first.release()
    with pytest.raises(ConfigError, match="is not empty"):
        claim_new(tmp_path / "run")
    assert (first.folder.path / "config.yaml").is_file()


@pytest.mark.parametrize("what", ["renamed", "removed", "another"])
def test_a_folder_that_is_another_while_a_run_trains_is_noticed(tmp_path: Path, what: str) -> None:
    claim = claim_new(tmp_path / "run")
    claim.check_in_place()
    moved = claim.folder.path.rename(tmp_path / "moved")
    if what == "removed":
        shutil.rmtree(moved)
    if what == "another":
        claim.folder.path.mkdir()
    with pytest.raises(CheckpointError, match="run has been renamed or removed while the run"):
        claim.check_in_place()
    if what == "renamed":
        moved.rename(claim.folder.path)
        claim.check_in_place()
    claim.release()


@pytest.mark.parametrize("when", ["one_step", "_validate"])
def test_a_run_whose_folder_is_renamed_stops_at_the_next_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += ["log.tensorboard=false", "eval.bytes=300", f"run_dir='{tmp_path / 'run'}'"]
    plain = getattr(trainer.Trainer, when)

    def renaming(self: trainer.Trainer, **rest: int) -> object:
        found = plain(self, **rest)
        if self.state.step == (3 if when == "one_step" else 8):
            self.folder.path.rename(tmp_path / "moved")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, when, renaming)
        with pytest.raises(CheckpointError, match="has been renamed or removed while the run"):
            trainer.train(resolve(compose_config(words)))
    assert not (tmp_path / "run").exists()
    moved = RunFolder(tmp_path / "moved")
    assert moved.checkpoint_steps()[-1] == (2 if when == "one_step" else 8)
    trainer.train(resolve(moved.read_config() | {"resume": str(moved)}))
    assert moved.is_finished


def test_a_folder_that_no_run_began_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("of somebody else")
    with pytest.raises(ConfigError, match="is not empty"):
        claim_new(tmp_path)


def test_a_run_in_progress_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("older", "newer")
    for name in names:
        RunFolder(claim.RUNS / "toy" / name).checkpoint(2).mkdir(parents=True)
    older, newer = (RunFolder(claim.RUNS / "toy" / name) for name in names)
    assert newest_unfinished("toy") is not None
    held = claim_folder(newer, None, "toy", Ranks())
    with pytest.raises(CheckpointError, match="another process is training in"):
        claim_folder(newer, None, "toy", Ranks())
    assert newest_unfinished("toy") == older
    held.release()
    older.write_result({})
    assert newest_unfinished("toy") == newer


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    is_held = context.Event()
    child = context.Process(target=hold_in_a_process, args=(str(tmp_path / "run"), is_held))
    child.start()
    assert is_held.wait(60)
    with pytest.raises(CheckpointError, match="another process"):
        claim_new(tmp_path / "run")
    child.kill()
    child.join()
    claim_new(tmp_path / "run").release()
