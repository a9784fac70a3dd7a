"""`nanozoo_core.compare`: its table, its failures, and Ctrl-C."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import nanozoo_core
from nanozoo_core.comparing.compare import command, execute
from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.config.overrides import as_words


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_finished_runs_are_a_table(trained: nanozoo_core.Result) -> None:
    found = nanozoo_core.compare(runs=[trained.folder], folder=Path("there"))
    (row,) = found.rows()
    assert (row["model"], row["seeds"], row["bound"]) == ("toy", 1.0, False)
    assert row["bits per byte"] == trained.val_bpb
    assert (found.folder / "report.html").is_file()
    assert "| toy |" in str(found)
    assert found.failures == {}


def test_arguments_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def train_members(request: Any, **_: object) -> tuple[list[Any], dict[str, str]]:
        seen.append(request)
        return [], {"toy_3": "it failed"}

    monkeypatch.setattr(command, "train_members", train_members)
    found = nanozoo_core.compare(
        ["toy", "wide:toy"],
        budget="steps:2",
        seeds=[3, 4],
        jobs=2,
        eval={"bytes": 300},
        wide={"model_cfg": {"model_dim": 64}},
    )
    words = ["models=toy,wide:toy", "budget=steps:2", "seeds=3,4", "jobs=2", "eval.bytes=300"]
    assert seen[0] == parse([*words, "wide.model_cfg.model_dim=64"])
    assert parse(as_words({"models": ["toy"]})).command == "nanozoo compare 'models=[toy]'"
    assert found.failures == {"toy_3": "it failed"}
    assert (found.report, found.rows(), str(found)) == (None, [], "no run is finished")


def test_mistakes_are_sentences() -> None:
    with pytest.raises(nanozoo_core.ConfigError, match="nothing to compare"):
        nanozoo_core.compare([])
    with pytest.raises(nanozoo_core.ConfigError, match="budget=minutes:3 must be UNIT:AMOUNT"):
        nanozoo_core.compare(["toy"], budget="minutes:3")


def test_ctrl_c_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an error of ours, which a loop over comparisons would catch and go on after."""

    def interrupted(*_: object, **__: object) -> dict[str, str]:
        raise execute.Interrupted("stopped; the same command goes on")

    monkeypatch.setattr(command, "run_members", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nanozoo_core.compare(["toy"], folder="there")


def test_members_run_from_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no signal can be caught."""
    failures: list[object] = []
    thread = threading.Thread(
        target=lambda: failures.append(execute.run_members(Path("p"), [], jobs=1, command=""))
    )
    thread.start()
    thread.join()
    assert failures == [{}]
