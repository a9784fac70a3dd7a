"""A run names its data as they are found from every folder, and takes them from another place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanozoo_core.config import DataConfig, compose_config, from_defaults, resolve
from nanozoo_core.config.overrides import Referred
from nanozoo_core.errors import CheckpointError, ConfigError, DataError
from nanozoo_core.training import finish, records, runs, trainer
from nanozoo_core.training.run_data import lasting_path
from nanozoo_core.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def begun(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stopped run `run` on data `texts`, which it was begun beside."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(corpus, home / "texts")
    words = ["model=toy", "device=cpu", "data.corpus=text", "data.path=texts"]
    words += ["log.tensorboard=false", "run_dir=run", "eval.bytes=300", "train.stop_after=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        trainer.train(resolve(compose_config(words)))
    return home


@pytest.fixture
def home(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda _: None)
    shutil.copytree(begun / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return begun


def resume(run: Path, **data: object) -> trainer.Result:
    settings = RunFolder(run).read_config() | {"resume": str(run)}
    return trainer.train(resolve(settings | {"data": settings["data"] | data}))


def test_a_run_goes_on_and_is_scored_in_another_folder(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert RunFolder(run).read_config()["data"]["path"] == str(home / "texts")
    assert runs.score(runs.load_run(run, device="cpu"), {}).score.num_bytes > 0
    assert resume(run).val_bpb is not None


def test_data_that_have_moved_are_asked_for_and_taken_from_their_new_place(
    home: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", (home / "texts").rename(tmp_path / "moved")
    advice = r"texts does not exist \(looked from .*\); the run in .*run takes the same text from "
    advice += r"any place: say where it is now, as data\.path=PLACE, or data\.sources\.NAME\.path="
    advice += r"PLACE for a source of a mixture$"
    try:
        with pytest.raises(DataError, match=advice):
            resume(run)
        loaded = runs.load_run(run, device="cpu")
        with pytest.raises(DataError, match=advice):
            runs.score(loaded, {})
        there = runs.with_moved_data(loaded, {"path": "moved"})
        expected = runs.score(there, {})
        assert resume(run, path="moved").val_bpb is not None
        assert RunFolder(run).read_config()["data"]["path"] == str(moved)
        assert expected.step == 4
    finally:
        moved.rename(home / "texts")


def test_another_text_at_the_new_place_is_refused(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "other.txt").write_text("another text\n" * 400 + "and more\n" * 99)
    other = str(tmp_path / "other.txt")
    there = runs.with_moved_data(runs.load_run(run, device="cpu"), {"path": other})
    with pytest.raises(DataError, match=r"other\.txt holds another text than the run in .*run has"):
        runs.score(there, {})
    with pytest.raises(CheckpointError, match="has changed since the run"):
        resume(run, path=other)
    with pytest.raises(ConfigError, match=r"did you mean 'path'"):
        runs.with_moved_data(there, {"paht": other})


def test_lasting_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def lasting(path: object, corpus: str = "text") -> object:
        return lasting_path(from_defaults(DataConfig, corpus=corpus, path=path))  # type: ignore[arg-type]

    assert lasting("a/*.txt") == f"{tmp_path}/a/*.txt"
    assert lasting(["a", "/b", "../c"], "bin") == [f"{tmp_path}/a", "/b", f"{tmp_path}/../c"]
    assert lasting("~/a") == str(Path.home() / "a")
    assert lasting("some/name", "huggingface") == "some/name"
    assert lasting(None, "stdlib") is None
    secret = Referred("token", "${oc.env:TOKEN}")
    assert lasting(secret) is secret  # stored as its reference
