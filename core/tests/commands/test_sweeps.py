"""Sweeps whose jobs run elsewhere, by a launcher of Hydra's."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import pytest

from nanozoo_core.commands.train import hydra_arguments, parse, run_hydra
from nanozoo_core.config import compose_config
from nanozoo_core.config.compose import QUIET
from nanozoo_core.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("own", [None, "mine"])
def test_submitit_writes_where_the_sweep_is_and_says_so(
    own: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "model=toy", "hydra/launcher=submitit_local"]
    with hydra_arguments(parse([*words, f"hydra.sweep.dir={own}"] if own else words)) as arguments:
        pass
    if own is None:
        (folder,) = Path("runs/sweeps").iterdir()
    else:
        folder = Path(own)
    assert (
        [a for a in arguments if a.startswith("hydra.sweep.dir=")][-1]
        .strip("'")
        .endswith(str(folder))
    )
    assert f"print is in {folder}/.submitit/JOB/" in capsys.readouterr().err


def test_another_sweep_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with hydra_arguments(parse(["-m", "model=toy"])):
        pass
    assert not Path("runs").exists()
    assert not capsys.readouterr().err


def test_a_job_elsewhere_says_its_error_there_and_brings_it_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--multirun", "model=toy", "train.max_steps=-1", *QUIET]
    monkeypatch.setattr(os, "getpid", itertools.count(1).__next__)
    with pytest.raises(ConfigError, match=r"train\.max_steps=-1") as caught:
        run_hydra(words, "words")
    assert "error: train.max_steps=-1" in capsys.readouterr().err
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_launcher_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(ConfigError, match=r"hydra/launcher=slurmy .*nanozoo-core\[submitit\]"):
        compose_config(["model=toy", "hydra/launcher=slurmy"])
