"""Weights & Biases: the project, and the one run there that a run keeps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nanozoo_core.config import LogConfig, compose_config, from_defaults, resolve
from nanozoo_core.errors import ConfigError
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.tracking import start_wandb
from nanozoo_core.training.trainer import train


class FakeWandb(ModuleType):
    """Notes how runs are begun and what they log, and gives new ones the ids new1, new2, ..."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[str, int]] = []
        self.finished: list[str] = []

    def init(self, **how: Any) -> Any:
        self.begun.append(how)
        name = how.get("id") or f"new{len(self.begun)}"

        def log(numbers: dict[str, float], step: int) -> None:
            assert "loss" in numbers or "val_bpb" in numbers
            self.logged.append((name, step))

        return SimpleNamespace(
            id=name,
            project=how["project"],
            entity=how.get("entity") or "someone",
            log=log,
            finish=lambda: self.finished.append(name),
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def log_config(project: str | None = None) -> LogConfig:
    return from_defaults(LogConfig, wandb=True, wandb_project=project)


@pytest.mark.parametrize(
    ("setting", "variable", "project"),
    [
        (None, None, "nanozoo"),
        (None, "", "nanozoo"),
        (None, "theirs", "theirs"),
        ("mine", "theirs", "mine"),
    ],
)
def test_the_project_is_the_settings_or_the_environments(
    wandb: FakeWandb,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setting: str | None,
    variable: str | None,
    project: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    run = start_wandb(RunFolder(tmp_path), log_config(setting), {"seed": 1})
    assert run.project == project
    assert wandb.begun[0]["config"] == {"seed": 1}
    assert "id" not in wandb.begun[0]


def test_a_resumed_run_goes_on_where_it_was(
    wandb: FakeWandb, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "first")
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += ["log.tensorboard=false", "log.wandb=true", "eval.bytes=300"]
    words += [f"run_dir='{tmp_path / 'run'}'", "train.max_steps=4", "train.stop_after=2"]
    folder = RunFolder(train(resolve(compose_config(words))).folder)
    monkeypatch.setenv("WANDB_PROJECT", "second")
    train(resolve(folder.read_config() | {"resume": str(folder)}))
    first, second = wandb.begun
    assert first["project"] == "first"
    assert (second["project"], second["id"], second["entity"]) == ("first", "new1", "someone")
    assert second["resume"] == "allow"
    assert first["dir"] == second["dir"] == str(folder)
    assert wandb.logged == [("new1", step) for step in (1, 2, 3, 4, 4)]
    assert wandb.finished == ["new1", "new1"]


def test_the_entity_and_the_group_are_the_settings(wandb: FakeWandb, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    team = from_defaults(LogConfig, wandb=True, wandb_entity="team", wandb_group="sweep")
    assert start_wandb(folder, team, {}).entity == "team"
    assert (wandb.begun[0]["entity"], wandb.begun[0]["group"]) == ("team", "sweep")
    start_wandb(folder, log_config(), {})
    assert (wandb.begun[1]["entity"], wandb.begun[1]["group"]) == ("team", None)
    other = from_defaults(LogConfig, wandb=True, wandb_entity="another")
    with pytest.raises(ConfigError, match=r"log\.wandb_entity=another is not team, where the run"):
        start_wandb(folder, other, {})


def test_a_run_without_an_entity_takes_one_later(wandb: FakeWandb, tmp_path: Path) -> None:
    """As one that was begun offline."""
    stored = {"project": "nanozoo", "entity": "", "id": "old"}
    RunFolder(tmp_path).wandb_path.write_text(json.dumps(stored))
    team = from_defaults(LogConfig, wandb=True, wandb_entity="team")
    assert start_wandb(RunFolder(tmp_path), team, {}).entity == "team"
    assert wandb.begun[0]["id"] == "old"


def test_a_missing_package_is_said_before_anything_is_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["model=toy", "device=cpu", "log.wandb=true", f"run_dir='{tmp_path / 'run'}'"]
    words += ["data.corpus=text", f"data.path='{corpus}'"]
    with pytest.raises(ConfigError, match=r"log.wandb=true needs the package wandb"):
        train(resolve(compose_config(words)))
    assert not (tmp_path / "run").exists()
